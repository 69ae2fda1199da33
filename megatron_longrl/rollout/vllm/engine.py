"""vLLM inside the training program, one or more engines over the ranks of each model replica.

``external_launcher``: torchrun starts the ranks, every rank builds its own engine object
in-process, and the tensor-parallel ranks of an engine step together because they schedule the same
requests in the same order. Prompts go in as embeddings, so the engine needs the language model
only. This is the one design on CPU and GPU.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.experience.rollouts import Completion
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks
from megatron_longrl.rollout.base_engine import EngineSetup
from megatron_longrl.rollout.engine import RolloutStopped
from megatron_longrl.rollout.engine_requests import EngineRequests
from megatron_longrl.rollout.in_process_engine import InProcessEngine
from megatron_longrl.rollout.model_settings import ModelSettings
from megatron_longrl.rollout.requests import (
    PromptRequest,
    buffer_shape,
    check_inputs,
    make_request,
)
from megatron_longrl.rollout.vllm.embedding_buffers import EmbeddingBuffers
from megatron_longrl.rollout.vllm.generation import Generator
from megatron_longrl.rollout.vllm.model import no_compilation, reset_caches, start_model
from megatron_longrl.rollout.vllm.placement import choose_placement
from megatron_longrl.rollout.vllm.process_isolation import kept_random_state, unlink_shared_memory
from megatron_longrl.rollout.vllm.sampling_params import extra_args
from megatron_longrl.rollout.vllm.served import weight_receiver

if TYPE_CHECKING:
    from megatron_longrl.data.tokenizer import Tokenizer


class _End(Enum):
    """Whether a generation ends before it is done; the largest of all ranks' counts."""

    NOT_YET = 0
    LATE = 1
    STOPPED = 2


class VllmEngine(InProcessEngine):
    """An engine on vLLM.

    Construction is collective over the world: vLLM makes its own process groups next to Megatron's,
    so torch.distributed is initialised before. One engine lives in a process at a time. The engine
    has no usable weights until the first :meth:`update_weights`.

    Args:
        settings: the language model. Its tensor-parallel size is set here.
        tokenizer: end-of-turn id and decoding.
        groups: the process groups of this rank.
        tensor_parallel_size: ranks per engine; None takes the most that fit. With fewer than the
            replica has, its engines share the prompts.
        sleeps: free the accelerator's memory between calls; vLLM's sleep mode needs GPUs.
        timeout_seconds: a generation that takes longer is an error.
        log_level: ``debug`` shows vLLM's log, other levels its warnings only.

    Raises:
        UserError: on every rank, when the size does not fit or the engine cannot start.
    """

    def __init__(
        self,
        settings: ModelSettings,
        tokenizer: Tokenizer,
        groups: ParallelGroups,
        *,
        tensor_parallel_size: int | None,
        sleeps: bool = False,
        timeout_seconds: float = 600.0,
        log_level: str = "info",
    ) -> None:
        hf_config, host = settings.hf_config, socket.gethostname()
        self.placement = choose_placement(tensor_parallel_size, hf_config, groups, host)
        super().__init__(
            EngineSetup(
                tokenizer,
                groups,
                settings.max_model_len,
                timeout_seconds,
                engine=self.placement.engine,
                num_engines=self.placement.num_engines,
            )
        )
        size = self.placement.tensor_parallel_size
        self._settings = replace(settings, tensor_parallel_size=size)
        self._sleeps = sleeps
        self._receiver = weight_receiver(settings)
        self._buffers = EmbeddingBuffers(self.placement, self.gloo_group, settings.torch_dtype)
        self._prepared: list[PromptRequest] = []
        self._engine: Any = None
        instance = gather_objects(groups.gloo_group, secrets.token_hex(6))[0]
        with raise_on_all_ranks(groups.gloo_group):
            self._engine = start_model(
                self._settings,
                executor="external_launcher",
                instance=instance,
                log_level=log_level,
                enable_sleep_mode=sleeps,
            )
        self._generator = Generator(self._engine)
        unlink_shared_memory(instance)

    def prepare(self, requests: EngineRequests) -> None:
        """Put the prompts together, one copy for all ranks of the engine."""
        table = self._receiver.token_embeddings
        if table is None:
            raise RuntimeError("generate() before the first update_weights()")
        media, is_leader = requests.media, self.placement.is_leader
        with raise_on_all_ranks(self.gloo_group):
            shapes = [buffer_shape(r, media, table, moves=False) for r in requests.requests]
        buffers = self._buffers.open(shapes)
        with raise_on_all_ranks(self.gloo_group):
            self._prepared = [
                make_request(
                    request,
                    media,
                    table,
                    self._settings,
                    buffer=buffer,
                    extra=partial(extra_args, settings=self._settings),
                    fill=is_leader,
                )
                for request, buffer in zip(requests.requests, buffers, strict=True)
            ]
            if is_leader:
                check_inputs(self._prepared)
        self.stats = self.stats.plus(
            prompts=requests.num_prompts * is_leader,
            prompt_bytes=sum(request.copied for request in self._prepared),
        )

    def run(self, requests: EngineRequests) -> None:
        """See :meth:`InProcessEngine.run`; the engine's leader delivers."""
        prepared, self._prepared = self._prepared, []
        with kept_random_state(), no_compilation(), self._awake():
            self._generate(prepared, requests)
        if self.placement.is_leader:
            for request, made in zip(requests.requests, prepared, strict=True):
                assert made.given is not None, "made here"
                requests.record_input(request, made.given)

    def load_weights(self, named: Iterator[tuple[str, Tensor]]) -> None:
        """See :meth:`InProcessEngine.load_weights`."""
        with kept_random_state(), self._awake("weights"):
            self._engine.collective_rpc(
                lambda worker: worker.model_runner.reload_weights(
                    weights_iterator=self._receiver.passing(named)
                )
            )
            self._receiver.check_complete()
            self._reset_caches()

    def reset_prefix_cache(self) -> None:
        """See :meth:`RolloutEngine.reset_prefix_cache`."""
        with raise_on_all_ranks(self.gloo_group):
            self._reset_caches()

    def hook_model(self, hook: Callable[..., None]) -> None:
        """Call ``hook(module, inputs, named_inputs)`` before every forward pass of this rank."""
        self._engine.collective_rpc(
            lambda worker: (
                worker.model_runner.model.register_forward_pre_hook(hook, with_kwargs=True) and None
            )
        )

    def close(self) -> None:
        """See :meth:`RolloutEngine.close`."""
        if self._engine is None:
            return
        self._engine.engine_core.shutdown()
        self._engine = None
        self._receiver.token_embeddings = None

    @contextmanager
    def _awake(self, *tags: str) -> Iterator[None]:
        """Keep the named parts on the accelerator within the block (``weights``, ``kv_cache``); by
        default both."""
        if not self._sleeps:
            yield
            return
        if self._engine.is_sleeping():  # not before the first update
            self._engine.wake_up(list(tags) or None)
        try:
            yield
        finally:
            self._engine.sleep(level=1)

    def _reset_caches(self) -> None:
        reset_caches(self._engine)
        self.stats = self.stats.plus(cache_resets=1)

    def _generate(self, prepared: list[PromptRequest], requests: EngineRequests) -> None:
        """Generate on this rank's engine, all of whose ranks go to the end together."""
        total, done = sum(len(request.wanted) for request in prepared), 0
        failure: Exception | None = None

        def deliver(position: int, index: int, completion: Completion) -> None:
            nonlocal done, failure
            done += 1
            if not self.placement.is_leader or failure is not None:
                return
            try:
                requests.deliver(requests.requests[position], index, completion)
            except Exception as error:  # Later: the engine's other ranks go on.
                failure = error

        def check() -> None:
            end = self._end()
            if end is _End.STOPPED:
                raise RolloutStopped
            if end is _End.LATE:
                raise UserError(
                    f"generation did not end within {self.timeout_seconds:g} s "
                    f"({done} of {total} responses were done); raise"
                    " --rollout-timeout or lower --rollout-max-tokens"
                )

        tokenizer = self.tokenizer
        self._generator.run(
            prepared, requests.sampling, tokenizer.end_ids, deliver, check, tokenizer
        )
        if failure is not None:
            raise failure

    def _end(self) -> _End:
        """Return the reason for which any rank of this engine has to end, as all must end at the
        same step."""
        mine = _End.LATE if self.is_late() else _End.NOT_YET
        if self.asked_to_stop():
            mine = _End.STOPPED
        end = torch.tensor([mine.value], dtype=torch.int32)
        if self.placement.tensor_parallel_size > 1:
            from vllm.distributed.parallel_state import get_tp_group

            dist.all_reduce(end, op=dist.ReduceOp.MAX, group=get_tp_group().cpu_group)
        return _End(int(end))
