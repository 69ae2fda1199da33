"""vLLM as a server beside the trainer, one for each model replica.

The replica's first rank speaks with it, and where no address is given starts it, as a child that
ends with the trainer. A server that dies is started again (one with an address is waited for), gets
the weights of the moment again, and is asked again for the responses that had not come: a
response's random numbers depend on its seed alone, so that they are the same ones. A server that
does not answer is an error.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import (
    Completion,
)
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.platforms import platform
from megatron_longrl.processes.daemon_thread import in_daemon_thread
from megatron_longrl.rollout.async_engine import AsyncEngine, Wait
from megatron_longrl.rollout.base_engine import EngineSetup
from megatron_longrl.rollout.engine_requests import EngineRequest, EngineRequests
from megatron_longrl.rollout.model_settings import ModelSettings
from megatron_longrl.rollout.requests import (
    EmbeddingBuffer,
    PromptRequest,
    buffer_shape,
    make_request,
)
from megatron_longrl.rollout.server.client import ServerClient, ServerLost, StaleWeights
from megatron_longrl.rollout.server.guard import known_token
from megatron_longrl.rollout.server.process import ServerProcess
from megatron_longrl.rollout.server.wire import Generation, GenerationFile, Line, weights_name
from megatron_longrl.rollout.vllm.sampling_params import extra_args
from megatron_longrl.rollout.vllm.served import weight_receiver
from megatron_longrl.rollout.weights.buckets import TransferStats, WeightBuckets, WeightSender
from megatron_longrl.rollout.weights.receiver import NamedTensors, WeightReceiver

if TYPE_CHECKING:
    from megatron_longrl.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_Asked = tuple[GenerationFile, list[PromptRequest]]

_MOST_RECOVERIES = 3
_SECONDS_BETWEEN_KNOCKS = 1.0
_SECONDS_BETWEEN_LOOKS = 0.2


class ServerEngine(AsyncEngine):
    """An engine in a separate process.

    Construction is collective over the world. The argument of :meth:`update_weights` is kept, and
    iterated again when a server has lost its weights.

    Args:
        settings: the language model; of the server, its tensor-parallel size, too.
        tokenizer: end-of-turn id and decoding.
        groups: the process groups of this rank.
        addresses: HOST:PORT of each replica's server; none where they are to be started.
        token_file: the file with the token of these servers; by default the token is the
            environment's.
        bucket_bytes: shared memory through which weights go.
        timeout_seconds: the time for a generation, and for every other answer.
        log_level: the log level of servers that are started.

    Raises:
        UserError: on every rank, when a server does not start, or serves something else.
    """

    def __init__(
        self,
        settings: ModelSettings,
        tokenizer: Tokenizer,
        groups: ParallelGroups,
        *,
        addresses: Sequence[str] = (),
        token_file: str | None = None,
        bucket_bytes: int = 256 << 20,
        timeout_seconds: float = 600.0,
        log_level: str = "info",
    ) -> None:
        super().__init__(EngineSetup(tokenizer, groups, settings.max_model_len, timeout_seconds))
        self.recoveries = 0
        """Number of times that a server was lost."""
        self.last_update = TransferStats()
        """Counts of this rank's last update."""
        self._settings = settings
        self._token_file = token_file
        self._run = secrets.token_hex(6)
        self._receiver = weight_receiver(settings)
        self._source: NamedTensors | None = None
        self._held: str | None = None  # name of the weights that the server got last
        self._is_leader = self.gloo_group.rank() == 0
        self._process: ServerProcess | None = None
        self._client: ServerClient | None = None
        self._sender: WeightSender | None = None
        with raise_on_all_ranks(groups.gloo_group):
            if self._is_leader:
                address = addresses[groups.dp.rank()] if addresses else None
                if address is None:
                    self._process = ServerProcess(settings, log_level, tokenizer.origin)
                self._sender = _sender(self._receiver, settings, bucket_bytes, timeout_seconds)
                self._connect(address)

    def submit(self, requests: EngineRequests) -> Wait:
        """See :meth:`AsyncEngine.submit`."""
        with raise_on_all_ranks(self.gloo_group):
            asked = self._written(requests)
        answer = self._start(asked, requests)

        def finish(version: int) -> bool:
            nonlocal asked, answer
            losses, stopped = 0, False
            try:
                while True:
                    lost: ServerLost | None = None
                    with raise_on_all_ranks(self.gloo_group):
                        if answer is not None:
                            try:
                                stopped = self._wait(answer)
                            except ServerLost as error:
                                lost = error
                    if not self._must_recover(lost, losses):
                        break
                    losses += 1
                    assert self._source is not None
                    self._deliver(self._source, version)
                    if version != self.weight_version:  # The text's embeddings are others now.
                        self.weight_version = requests.weight_version = version
                        with raise_on_all_ranks(self.gloo_group):
                            _close(asked)
                            asked = self._written(requests)
                    answer = self._start(asked, requests)
                with raise_on_all_ranks(self.gloo_group):
                    if asked is not None:
                        for request, made in zip(requests.requests, asked[1], strict=True):
                            assert made.given is not None, "made here"
                            requests.record_input(request, made.given)
            finally:
                _close(asked)
            return stopped

        return finish

    def update_weights(self, named: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See :meth:`RolloutEngine.update_weights`."""
        if isinstance(named, Iterator):
            raise TypeError("a server may ask for its weights again: give WeightIterator")
        self._source = named
        self._deliver(named, version)
        self.weight_version = version
        # A server that has each of them already goes on with what it knows of prompts.
        moved = gather_objects(self.gloo_group, bool(self.last_update.names))[0]
        self.stats = self.stats.plus(weight_updates=1, cache_resets=moved)

    def reset_prefix_cache(self) -> None:
        """See :meth:`RolloutEngine.reset_prefix_cache`; a server that is gone has none, and one
        that could not be told gets its weights anew."""
        lost: ServerLost | None = None
        with raise_on_all_ranks(self.gloo_group):
            if self._is_leader:
                assert self._client is not None
                try:
                    self._client.reset_prefix_cache()
                except ServerLost as error:
                    lost = error
        if self._must_recover(lost, 0) and self._source is not None:
            self._deliver(self._source, self.weight_version)
        self.stats = self.stats.plus(cache_resets=1)

    def close(self) -> None:
        """See :meth:`RolloutEngine.close`; a server with an address lives on."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        if self._client is not None:
            self._client.close()
            self._client.release()
            self._client = None
        self._source = None

    # ---- Of the leader ----

    def _connect(self, address: str | None) -> None:
        """Find the server, or start it; it has no weights of ours then."""
        if self._process is not None:
            address = self._process.start()
        assert address is not None
        token = self._process.token if self._process is not None else known_token(self._token_file)
        if self._client is not None:
            self._client.close()
            self._client.release()
        self._client = ServerClient(address, self.timeout_seconds, token)
        if self._process is None:
            self._wait_for(self._client)
        try:
            self._client.check(self._settings)
            if self._process is None:  # Nobody else has the token of one that was started here.
                self._client.hold(self._run)
        except ServerLost as error:
            raise UserError(f"the rollout server at {address} went away: {error}") from error

    def _check_held(self) -> None:
        """Whether the server still has the weights that it got last: another trainer may have used
        it since."""
        assert self._client is not None and self._sender is not None
        if self._held is None or self._client.describe()["weights"] != self._held:
            self._held = None
            self._sender.connect(self._client)

    def _wait_for(self, client: ServerClient) -> None:
        """A server that somebody else starts, or starts again."""
        deadline = time.monotonic() + self.timeout_seconds
        while True:
            try:
                client.describe()
                return
            except ServerLost as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"no rollout server at {client.address} for {self.timeout_seconds:g} s"
                        f" ({error}): start one with python -m megatron_longrl.serve"
                    ) from error
                time.sleep(_SECONDS_BETWEEN_KNOCKS)

    def _start(self, asked: _Asked | None, mine: EngineRequests) -> Future[None] | None:
        """:meth:`_ask` in a separate thread, which does not keep the process alive."""
        if asked is None:
            return None
        return in_daemon_thread(partial(self._ask, *asked, mine), "rollouts")

    def _wait(self, answer: Future[None]) -> bool:
        """Wait for the end of a generation and return whether a signal has come before it. The
        server notices by itself that nobody reads on."""
        while not wait([answer], _SECONDS_BETWEEN_LOOKS).done:
            if self.asked_to_stop():
                return True
        answer.result()
        return False

    def _written(self, mine: EngineRequests) -> _Asked | None:
        """Write the request and its prompts where the server reads them; return None on other
        ranks."""
        if not self._is_leader:
            return None
        table, media = self._receiver.token_embeddings, mine.media
        assert table is not None
        extra = partial(extra_args, settings=self._settings)

        def make(request: EngineRequest, buffer: EmbeddingBuffer, *, fill: bool) -> PromptRequest:
            return make_request(
                request, media, table, self._settings, buffer=buffer, extra=extra, fill=fill
            )

        shapes = [
            make(request, buffer_shape(request, media, table, moves=True), fill=False)
            for request in mine.requests
        ]
        file = GenerationFile(self._generation(shapes, mine.sampling))
        made = [
            make(request, buffer, fill=True)
            for request, buffer in zip(mine.requests, file.buffers, strict=True)
        ]
        self.stats = self.stats.plus(
            prompts=mine.num_prompts, prompt_bytes=sum(request.copied for request in made)
        )
        return file, made

    def _generation(
        self, requests: Sequence[PromptRequest], sampling: SamplingSettings
    ) -> Generation:
        return Generation(
            weights_name(self._run, self.weight_version),
            list(self.tokenizer.end_ids),
            self.tokenizer.origin if sampling.stop_strings else None,
            sampling,
            requests,
        )

    def _ask(
        self, file: GenerationFile, made: Sequence[PromptRequest], mine: EngineRequests
    ) -> None:
        """Have the missing rollouts generated."""
        assert self._client is not None
        missing = [
            replace(one, wanted=[j for j in request.wanted if not mine.is_delivered(request, j)])
            for request, one in zip(mine.requests, made, strict=True)
        ]
        file.ask(self._generation(missing, mine.sampling))
        with closing(self._client.generate(file.memory)) as lines:
            for line in lines:
                request, index = mine.requests[line["prompt"]], line["index"]
                if mine.is_delivered(request, index):
                    raise RuntimeError(f"response {index} to request {request.position} came twice")
                mine.deliver(request, index, *self._completion(line))
        if len(mine.rollouts) < sum(len(request.wanted) for request in mine.requests):
            raise RuntimeError("the rollout server ended without all responses")

    def _completion(self, line: Line) -> tuple[Completion, int]:
        """Read a line of the server's answer: the completion, and the version of the weights."""
        run, _, version = line["weights"].partition(":")
        if run != self._run:
            raise RuntimeError(f"the rollout server answers with the weights of another run, {run}")
        names = ("token_ids", "logprobs", "finish_reason", "seconds")
        return Completion(**{name: line[name] for name in names}), int(version)

    # ---- Collective over the replica ----

    def _deliver(self, named: NamedTensors, version: int) -> None:
        """Give the server the weights, however often it takes."""
        losses = 0
        while True:
            lost: ServerLost | None = None
            remaining = iter(named)
            with raise_on_all_ranks(self.gloo_group):
                try:
                    passing = self._receiver.passing(remaining)
                    if self._is_leader:
                        assert self._client is not None and self._sender is not None
                        name = weights_name(self._run, version)
                        self._check_held()
                        self.last_update = self._sender.send(passing, self._client, name)
                        self._held = name
                    else:
                        for _ in passing:
                            pass
                except ServerLost as error:
                    lost = error
                finally:
                    # The iterator may communicate: use it up also when something has failed here.
                    for _ in remaining:
                        pass
                if lost is None:
                    self._receiver.check_complete()
            if not self._must_recover(lost, losses):
                return
            losses += 1

    def _must_recover(self, lost: ServerLost | None, losses: int) -> bool:
        """Whether the leader has lost its server; it is there again then, without weights."""
        lost = gather_objects(self.gloo_group, lost)[0]
        if lost is None:
            return False
        self.recoveries += 1
        with raise_on_all_ranks(self.gloo_group):
            if self._is_leader:
                self._recover(lost, losses)
        return True

    def _recover(self, lost: ServerLost, losses: int) -> None:
        assert self._client is not None
        if isinstance(lost, StaleWeights):
            what = f"has the weights {lost}"
        elif self._process is not None:
            what = f"is gone: {self._process.last_words()}"
        else:
            what = f"is gone: {lost}"
        if losses == _MOST_RECOVERIES:
            raise UserError(
                f"the rollout server {what}; {losses} times it was brought back in vain"
            )
        logger.warning(
            "the rollout server at %s %s; it gets weights again, and is asked again for what had "
            "not come",
            *(self._client.address, what),
        )
        self._held = None
        if not isinstance(lost, StaleWeights):
            self._connect(self._client.address)


def _close(asked: _Asked | None) -> None:
    if asked is not None:
        asked[0].close()


def _sender(
    receiver: WeightReceiver, settings: ModelSettings, nbytes: int, timeout_seconds: float
) -> WeightSender:
    """The way of the weights on this kind of machine."""
    if platform.name == "cuda":
        from megatron_longrl.rollout.weights.nccl import NcclWeights

        return NcclWeights(settings.torch_dtype, nbytes, timeout_seconds)
    return WeightBuckets(receiver.shapes, settings.torch_dtype, nbytes)
