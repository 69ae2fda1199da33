"""A rollout server: the engine of one process, and what can be asked of it over HTTP.

Why not ``vllm serve`` (0.32): its requests carry numbers and strings beside a prompt's embeddings,
but no tensors, as positions of time, height and width and DeepStack's features are; embeddings
arrive as pickles in base64; its weight transfer has no engine for a CPU, and sends CUDA's handles
as pickles; and it takes 20 s more to start, which a restart in the middle of a step waits for. Here
the engine is that of the training process, with the same random numbers, and only the calls of its
weight transfer, named as vLLM names its routes, are vLLM's.

| route | takes | gives |
|---|---|---|
| GET /health | | what is served, in which versions, the weights' name, and the socket for shared memory |
| POST /lease | {"run": a name} | a line, {} or {"error"}; the server works for this run alone as long as the connection is open |
| POST /generate | a file of wire.py, or {"handle": of shared memory with one, see handles.py} | a line of JSON for each response when it is complete, the last with "end" |
| POST /reset_prefix_cache | | |
| POST /init_weight_transfer_engine | {"init_info": {"handle"} where trainer and server share a machine, else {"nbytes"}; on GPUs NCCL's} | |
| POST /bucket | the bucket's bytes, where they share none | |
| POST /start_weight_update, /update_weights, /finish_weight_update | as vLLM's | |
"""  # noqa: E501

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any, TypeVar

from megatron_longrl.data.tokenizer import Tokenizer, build_tokenizer
from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import Completion
from megatron_longrl.memory.shared import SharedMemory
from megatron_longrl.platforms import platform
from megatron_longrl.rollout.model_settings import ModelSettings
from megatron_longrl.rollout.server.checks import check_generation, check_update, model_bytes
from megatron_longrl.rollout.server.guard import Refused
from megatron_longrl.rollout.server.versions import versions
from megatron_longrl.rollout.server.wire import Line, read_generation
from megatron_longrl.rollout.vllm.generation import Generator
from megatron_longrl.rollout.vllm.model import no_compilation, reset_caches, start_model
from megatron_longrl.rollout.vllm.served import served_shapes
from megatron_longrl.rollout.weights.nccl import BACKEND as NCCL

T = TypeVar("T")

_MOST_WAITING = 64
"""Requests that wait for the engine."""
_LONGEST_ERROR = 2000
_LONGEST_NAME = 200
"""Characters that weights may be called by."""


class Stale(Exception):
    """Other weights are asked for than those that are there."""


class EngineThread:
    """Runs everything that concerns the engine, one thing at a time, in the thread that waits."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Queue a call, from any thread.

        Raises:
            Refused: too many wait already.
        """
        if self._work.qsize() >= _MOST_WAITING:
            raise Refused(503, f"{_MOST_WAITING} requests wait for the engine already")
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args))
            except Exception as error:
                future.set_exception(error)

        self._work.put(work)
        return future

    def run(self) -> None:
        """Run the queued calls for ever."""
        while True:
            self._work.get()()


class RolloutServer:
    """The engine and its weights. Only :meth:`describe` may be called beside another method.

    Args:
        tokenizer: the type and the model of the tokenizer that finds stop strings; None if there
            are none.

    Raises:
        UserError: the engine does not start.
    """

    def __init__(
        self,
        settings: ModelSettings,
        instance: str,
        log_level: str,
        tokenizer: tuple[str, str] | None = None,
    ) -> None:
        self._settings = settings
        self._origin = tokenizer
        self._tokenizer: Tokenizer | None = None
        self._weights: str | None = None
        self._updating = False
        self._bucket_bytes: int | None = None
        """Bytes of the bucket; None where weights do not come through one, or the way is not yet
        known."""
        self._shapes = served_shapes(settings)
        self._engine = start_model(
            settings,
            executor="uni" if settings.tensor_parallel_size == 1 else "mp",
            instance=instance,
            log_level=log_level,
            weight_transfer_config={"backend": transfer_backend()},
        )
        self._generator = Generator(self._engine)

    def describe(self) -> dict[str, Any]:
        """Return the description that a trainer compares with its own settings."""
        return {
            "versions": versions(),
            "settings": asdict(self._settings),
            "weights": self._weights,
        }

    def generate(self, path: str, send_line: Callable[[Line], None], gone: threading.Event) -> None:
        """Generate the rollouts that a file asks for.

        Args:
            path: the path of the shared memory, which this program has made.
            send_line: is called with a line for each response.
            gone: set when no client waits for them any more.

        Raises:
            Stale: by other weights than the server has.
            ValueError: it asks for what cannot be.
        """
        generation = read_generation(path)
        if generation.weights != self._weights:
            raise Stale(str(self._weights))
        check_generation(generation, self._settings)

        def receive(number: int, index: int, completion: Completion) -> None:
            send_line(
                {"prompt": number, "index": index, "weights": self._weights, **vars(completion)}
            )

        def check() -> None:
            if gone.is_set():
                raise InterruptedError("the trainer has gone")

        tokenizer = self._tokenizer_for(generation.tokenizer)
        with no_compilation():
            self._generator.run(
                generation.requests,
                generation.sampling,
                generation.end_ids,
                receive,
                check,
                tokenizer,
            )

    def reset_prefix_cache(self) -> None:
        """Reset the prefix cache."""
        reset_caches(self._engine)

    def _tokenizer_for(self, origin: tuple[str, str] | None) -> Tokenizer | None:
        """The server's own; its value in a request is only compared."""
        if origin is None:
            return None
        if self._origin is None or origin != tuple(self._origin):
            raise UserError(
                f"stop strings need the trainer's tokenizer, {origin[1]}; the server has "
                f"{self._origin[1] if self._origin else 'none'}: start it with the same "
                "--tokenizer-model"
            )
        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(*self._origin)
        return self._tokenizer

    def connect_bucket(self, memory: SharedMemory) -> None:
        """Weights will come from this memory, which the engine's processes map."""
        if transfer_backend() == NCCL:
            raise ValueError("weights come by NCCL here, and not through a bucket")
        info = {"path": memory.path, "nbytes": memory.nbytes}
        self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": info})
        self._bucket_bytes = memory.nbytes

    def make_bucket(self, nbytes: object) -> SharedMemory:
        """Weights will come from memory that the caller fills."""
        most = model_bytes(self._shapes, self._settings.torch_dtype)
        if type(nbytes) is not int or not 0 < nbytes <= most:
            raise ValueError(f"a bucket has between 1 and {most} bytes, as the model has")
        memory = SharedMemory(nbytes)
        try:
            self.connect_bucket(memory)
        except BaseException:
            memory.close()
            raise
        return memory

    def connect_nccl(self, init_info: dict[str, Any]) -> None:
        """Weights will come by NCCL, from where vLLM's ``NCCLWeightTransferInitInfo`` says."""
        if transfer_backend() != NCCL:
            raise ValueError("init_info has neither a handle nor nbytes")
        self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": init_info})

    def start_weight_update(self) -> None:
        """Start an update. Until its end the weights have no name, so that no request can name
        them."""
        self._weights = None
        if self._updating:  # a trainer went away in the middle
            self._engine.collective_rpc("finish_weight_update")
        self._engine.collective_rpc("start_weight_update")
        self._updating = True

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load a bucket."""
        if not self._updating:
            raise ValueError("start_weight_update comes first")
        if transfer_backend() != NCCL and self._bucket_bytes is None:
            raise ValueError("init_weight_transfer_engine comes first")
        dtype = self._settings.torch_dtype
        check_update(update_info, self._shapes, dtype, self._bucket_bytes)
        try:
            self._engine.collective_rpc("update_weights", kwargs={"update_info": update_info})
        except Exception:
            self._updating = False  # vLLM has ended it
            raise

    def finish_weight_update(self, weight_version: str) -> None:
        """Name the weights; without an update before, those that are there are the new ones."""
        if (
            not isinstance(weight_version, str)
            or len(weight_version) > _LONGEST_NAME
            or not weight_version.isascii()
            or not weight_version.isprintable()
        ):
            raise ValueError(
                f"weight_version is no text of up to {_LONGEST_NAME} printable ASCII characters"
            )
        if self._updating:
            self._engine.collective_rpc("finish_weight_update")
            self._updating = False
            self.reset_prefix_cache()
        self._weights = weight_version


def transfer_backend() -> str:
    """vLLM's name for the way of the weights, which the trainer takes, too."""
    if platform.name == "cuda":
        return NCCL
    from megatron_longrl.rollout.vllm.weight_transfer import BACKEND

    return BACKEND


def error_line(error: BaseException) -> Line:
    """The last line of a generation that has failed."""
    if isinstance(error, Stale):
        return {"end": "stale", "error": str(error)}
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return {"end": "failed", "error": message[:_LONGEST_ERROR]}
