"""A trainer's side of a rollout server: HTTP, and shared memory where they are on one machine."""

from __future__ import annotations

import http.client
import json
import logging
import mmap
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

from megatron_longrl.errors import UserError
from megatron_longrl.memory.shared import SharedMemory
from megatron_longrl.rollout.model_settings import ModelSettings
from megatron_longrl.rollout.server.address import split_address
from megatron_longrl.rollout.server.handles import SentMemory, reach, send
from megatron_longrl.rollout.server.lease import RUN_HEADER
from megatron_longrl.rollout.server.versions import versions
from megatron_longrl.rollout.server.wire import Line

logger = logging.getLogger(__name__)

_JSON, _BYTES = "application/json", "application/octet-stream"
_PROBE_SECONDS = 5.0
_SAME = ("hf_config", "dtype", "max_model_len", "deepstack_levels", "no_token")
"""Settings that a server must share with its trainer; the others are its own affair."""


class ServerLost(Exception):
    """The server has gone, or is another one than it was: start it again, give it weights."""


class StaleWeights(ServerLost):
    """The server is there, with other weights."""


class ServerClient:
    """Speaks with the server at one address. Every call has ``timeout_seconds``.

    Errors of any call: :class:`ServerLost` when the connection breaks; :class:`UserError` when the
    server does not answer in time, or answers that it has failed.
    """

    def __init__(self, address: str, timeout_seconds: float, token: str) -> None:
        self.address = address
        self._token = token
        self._authorization = {"Authorization": f"Bearer {token}"}
        self._lease: http.client.HTTPConnection | None = None
        self._host, self._port = split_address(address)
        self._seconds = timeout_seconds
        self._shares_memory: bool | None = None
        self._bucket: mmap.mmap | None = None  # whose content must be sent
        self._sent_bucket: SentMemory | None = None

    def close(self) -> None:
        """Make the server close the shared memory that it was given. Idempotent."""
        if self._sent_bucket is not None:
            self._sent_bucket.close()
            self._sent_bucket = None
        if self._bucket is not None:
            self._bucket.close()
            self._bucket = None

    def hold(self, run: str) -> None:
        """Let the server work for this run alone, until :meth:`release` or the end of the process.

        Args:
            run: a name of letters and digits.

        Raises:
            ServerLost: the connection breaks.
            UserError: the server works for another run.
        """
        self.release()
        self._authorization[RUN_HEADER] = run
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)
        try:
            headers = {"Content-Type": _JSON, **self._authorization}
            connection.request("POST", "/lease", json.dumps({"run": run}), headers)
            answer = json.loads(connection.getresponse().readline())
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise ServerLost(str(error) or type(error).__name__) from error
        if "error" in answer:
            connection.close()
            raise UserError(f"the rollout server at {self.address}: {answer['error']}")
        self._lease = connection

    def release(self) -> None:
        """Let the server work for others. Idempotent."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def describe(self) -> dict[str, Any]:
        """The answer of /health."""
        return self._call("GET", "/health")

    def local_host(self) -> str:
        """Return this machine's address on the way to the server.

        The host's name will not do: it may stand for the loopback address, or for an interface that
        the server does not reach.
        """
        with self._connection(
            time.monotonic() + _PROBE_SECONDS, "connecting did not end"
        ) as connection:
            connection.connect()
            host: str = connection.sock.getsockname()[0]
        return host

    def check(self, settings: ModelSettings) -> None:
        """Raise UserError unless the server serves this model with the software of this process."""
        described = self.describe()
        wrong = list(_differences(described.get("versions", {}), versions()))
        if wrong:
            raise UserError(
                f"the rollout server at {self.address} runs other versions ({'; '.join(wrong)}):"
                " start it from the trainer's environment"
            )
        mine = json.loads(json.dumps(asdict(settings)))
        wrong = list(
            _differences(*({n: s[n] for n in _SAME} for s in (described["settings"], mine)))
        )
        if wrong:
            raise UserError(
                f"the rollout server at {self.address} serves another model ({'; '.join(wrong)}):"
                " start it with the trainer's recipe and flags"
            )

    def connect_bucket(self, bucket: SharedMemory) -> None:
        """Say where weights will come from."""
        self.close()
        if self.shares_memory():
            self._sent_bucket = self._send(bucket)
            self.init_weight_transfer_engine({"handle": self._sent_bucket.handle})
        else:
            self._bucket = bucket.map()
            self.init_weight_transfer_engine({"nbytes": bucket.nbytes})

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Set up the transfer of weights, as vLLM's client does."""
        self._post("/init_weight_transfer_engine", {"init_info": init_info})

    def shares_memory(self) -> bool:
        """Whether the server takes shared memory of this process; finds out once."""
        if self._shares_memory is None:
            connection = self._reach()
            self._shares_memory = connection is not None
            if connection is not None:
                connection.close()
            else:
                logger.info(
                    "the rollout server at %s is on another machine, or another user's: prompts "
                    "and weights that do not go by NCCL are sent to it over HTTP",
                    self.address,
                )
        return self._shares_memory

    def _reach(self) -> socket.socket | None:
        address = self.describe()["socket"]
        try:
            return reach(address, self._seconds)
        except OSError as error:
            raise ServerLost(str(error) or type(error).__name__) from error

    def _send(self, memory: SharedMemory) -> SentMemory:
        connection = self._reach()
        if connection is None:
            raise ServerLost("its socket for shared memory is gone")
        try:
            return send(connection, self._token, memory)
        except OSError as error:
            raise ServerLost(str(error) or type(error).__name__) from error

    def generate(self, memory: SharedMemory) -> Generator[Line, None, None]:
        """The responses, each as soon as it is complete.

        Args:
            memory: the memory of a :class:`~megatron_longrl.rollout.server.wire.GenerationFile`.

        Raises:
            StaleWeights: the server has other weights than the generation asks for.
        """
        deadline = time.monotonic() + self._seconds
        sent = self._send(memory) if self.shares_memory() else None
        with (
            closing(sent) if sent is not None else nullcontext(),
            memory.map() as mapping,
            memoryview(mapping) as whole,
            self._connection(deadline, "generation did not end") as connection,
        ):
            body = json.dumps({"handle": sent.handle}) if sent is not None else whole
            content = _JSON if sent is not None else _BYTES
            headers = {"Content-Type": content, **self._authorization}
            connection.request("POST", "/generate", body, headers)
            yield from self._lines(connection, deadline)

    def _lines(self, connection: http.client.HTTPConnection, deadline: float) -> Iterator[Line]:
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            reason = _reason(response, response.read())
            raise UserError(f"the rollout server at {self.address} failed: {reason}")
        while True:
            if connection.sock is not None:
                connection.sock.settimeout(max(deadline - time.monotonic(), 1e-3))
            text = response.readline()
            if not text:
                raise ServerLost("the connection ended")
            line = json.loads(text)
            if line.get("end") == "done":
                return
            if line.get("end") == "stale":
                raise StaleWeights(line["error"])
            if "end" in line:
                raise UserError(f"the rollout server at {self.address} failed: {line['error']}")
            yield line
            if time.monotonic() > deadline:
                raise TimeoutError

    def reset_prefix_cache(self) -> None:
        """Forget everything computed of prompts."""
        self._post("/reset_prefix_cache", {})

    # ---- vLLM's VLLMWeightSyncClient, as far as weights/buckets.py uses it ----

    def start_weight_update(self) -> None:
        """See :class:`~megatron_longrl.rollout.weights.buckets.WeightServer`."""
        self._post("/start_weight_update", {})

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """See :class:`~megatron_longrl.rollout.weights.buckets.WeightServer`."""
        if self._bucket is not None:
            with memoryview(self._bucket) as whole, whole[: update_info["end"]] as content:
                self._call("POST", "/bucket", content, _BYTES)
        self._post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str) -> None:
        """See :class:`~megatron_longrl.rollout.weights.buckets.WeightServer`."""
        self._post("/finish_weight_update", {"weight_version": weight_version})

    # ---- HTTP ----

    def _post(self, route: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return self._call("POST", route, json.dumps(values), _JSON)

    def _call(
        self, method: str, route: str, body: Any = None, content: str = "text/plain"
    ) -> dict[str, Any]:
        deadline = time.monotonic() + self._seconds
        with self._connection(deadline, f"{route} did not end") as connection:
            headers = {"Content-Type": content, **self._authorization}
            connection.request(method, route, body, headers)
            response = connection.getresponse()
            body = response.read()
        if response.status == http.HTTPStatus.OK:
            answer: dict[str, Any] = json.loads(body)
            return answer
        reason = _reason(response, body)
        raise UserError(f"the rollout server at {self.address} failed at {route}: {reason}")

    @contextmanager
    def _connection(self, deadline: float, late: str) -> Iterator[http.client.HTTPConnection]:
        """Open a connection for one call, and translate the ways in which it can break."""
        seconds = max(deadline - time.monotonic(), 1e-3)
        connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        try:
            yield connection
        except TimeoutError:
            if self._answers():
                raise UserError(
                    f"{late} within {self._seconds:g} s at the rollout server {self.address};"
                    " raise --rollout-timeout or lower --rollout-max-tokens"
                ) from None
            raise UserError(
                f"the rollout server at {self.address} has not answered for {self._seconds:g} s:"
                " it is stopped or stuck; end it, or raise --rollout-timeout"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerLost(str(error) or type(error).__name__) from error
        finally:
            connection.close()

    def _answers(self) -> bool:
        """Whether the server is alive."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_PROBE_SECONDS)
        try:
            connection.request("GET", "/health", headers=self._authorization)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _reason(response: http.client.HTTPResponse, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status} {response.reason}"


def _differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys((*mine, *theirs)):
        one, other = theirs.get(name), mine.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other)
        elif one != other:
            yield f"{name} {one} there, {other} here"
