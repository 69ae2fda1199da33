"""vLLM inside the training program, one or more engines over the ranks of each model replica.

``external_launcher``: torchrun starts the ranks, every rank builds its own engine object
in-process, and the tensor-parallel ranks of an engine step together because they schedule the same
requests in the same order. Prompts go in as embeddings, so the engine needs the language model
only. This is the one design on CPU and GPU.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.experience.inputs import check_prompts
from megatron_longrl.experience.rollouts import (
    Completion,
    OnRollout,
    Rollout,
    RolloutGroup,
    RolloutRequest,
    Traffic,
)
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.rollout.continuation import Share, whole_groups
from megatron_longrl.rollout.engine import RolloutEngine, RolloutStopped
from megatron_longrl.rollout.placement import place
from megatron_longrl.rollout.prompt_buffers import PromptBuffers
from megatron_longrl.rollout.sampling import balanced_shares
from megatron_longrl.rollout.seeds import request_seeds
from megatron_longrl.rollout.vllm.generation import Generator
from megatron_longrl.rollout.vllm.guest import kept_random_state, unlink_shared_memory
from megatron_longrl.rollout.vllm.model import (
    ModelSettings,
    forget_prompts,
    no_compilation,
    start_model,
)
from megatron_longrl.rollout.vllm.requests import (
    PromptRequest,
    check_inputs,
    make_request,
    records,
    room_for,
)
from megatron_longrl.rollout.weights.stream import Incoming

if TYPE_CHECKING:
    from megatron_longrl.data.tokenizer import Tokenizer


class _End(Enum):
    """Whether a generation ends before it is done; the largest of all ranks' counts."""

    NOT_YET = 0
    LATE = 1
    STOPPED = 2


class VllmEngine(RolloutEngine):
    """An engine on vLLM.

    Construction is collective over the world: vLLM makes process groups of its own next to
    Megatron's, so torch.distributed is initialised before. One engine lives in a process at a time.
    The engine has no usable weights until the first :meth:`update_weights`.

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
        self.weight_version = -1
        self.traffic = Traffic()
        hf_config, host = settings.hf_config, socket.gethostname()
        self.placement = place(tensor_parallel_size, hf_config, groups, host)
        size = self.placement.tensor_parallel_size
        self._settings = replace(settings, tensor_parallel_size=size)
        self._tokenizer = tokenizer
        self._control = groups.replica_control
        self._timeout_seconds = timeout_seconds
        self._sleeps = sleeps
        self._incoming = Incoming(settings)
        self._buffers = PromptBuffers(self.placement, self._control, settings.torch_dtype)
        self._engine: Any = None
        instance = gather_objects(groups.control, secrets.token_hex(6))[0]
        with together(groups.control):
            self._engine = start_model(
                self._settings,
                executor="external_launcher",
                instance=instance,
                log_level=log_level,
                enable_sleep_mode=sleeps,
            )
        self._generator = Generator(self._engine)
        unlink_shared_memory(instance)

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
        on_rollout: OnRollout | None = None,
    ) -> list[RolloutGroup]:
        """See :meth:`RolloutEngine.generate`."""
        table = self._incoming.token_embeddings
        if table is None:
            raise RuntimeError("generate() before the first update_weights()")
        if not requests:
            return []
        prompts = [request.prompt for request in requests]
        seeds = request_seeds(self._control, [prompt.uid for prompt in prompts], sampling)
        costs = [len(prompt.token_ids) + sampling.n * sampling.max_tokens for prompt in prompts]
        places = balanced_shares(costs, self.placement.num_engines)[self.placement.engine]
        share = Share(requests, places, sampling, self._tokenizer, on_rollout)
        with together(self._control):
            check_prompts(prompts, sampling, self._settings.max_model_len)
            outlines = [
                room_for(prompts[p.place], p, media, table, moves=False) for p in share.beginnings
            ]
        rooms = self._buffers.open(outlines)
        leads = self.placement.is_leader
        with together(self._control):
            asked = [
                make_request(
                    *(prompts[p.place], seeds[p.place], p, media, table, self._settings),
                    room=room,
                    fill=leads,
                )
                for p, room in zip(share.beginnings, rooms, strict=True)
            ]
            if leads:
                check_inputs(asked)
        self.traffic = self.traffic.plus(
            prompts=len(places) * leads, prompt_bytes=sum(request.copied for request in asked)
        )
        mine: dict[tuple[int, int], Rollout] | None = None
        with (
            together(self._control),
            kept_random_state(),
            no_compilation(),
            self._awake(),
            suppress(RolloutStopped),
        ):
            mine = share.by_prompt(self._run(asked, sampling, share))
        with together(self._control):
            given = records(asked, share.beginnings, self.weight_version) if leads else {}
        everyone = gather_objects(self._control, (mine, given))
        return whole_groups(requests, sampling.n, everyone)

    def update_weights(self, named: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See :meth:`RolloutEngine.update_weights`."""
        remaining = iter(named)
        with together(self._control), kept_random_state(), self._awake("weights"):
            try:
                self._engine.collective_rpc(
                    lambda worker: worker.model_runner.reload_weights(
                        weights_iterator=self._incoming.passing(remaining)
                    )
                )
            finally:
                # The iterator may communicate: use it up even when loading failed on this rank.
                for _ in remaining:
                    pass
            self._incoming.check_complete()
            self._reset_caches()
        self.weight_version = version
        self.traffic = self.traffic.plus(weight_updates=1)

    def forget_prompts(self) -> None:
        """See :meth:`RolloutEngine.forget_prompts`."""
        with together(self._control):
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
        self._incoming.token_embeddings = None

    @contextmanager
    def _awake(self, *tags: str) -> Iterator[None]:
        """What a block needs is on the accelerator (``weights``, ``kv_cache``); by default both."""
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
        forget_prompts(self._engine)
        self.traffic = self.traffic.plus(cache_resets=1)

    def _run(
        self,
        requests: Sequence[PromptRequest],
        sampling: SamplingSettings,
        share: Share,
    ) -> dict[tuple[int, int], Rollout]:
        """Generate on this rank's engine.

        Returns:
            On the engine's leader the rollouts by request and index; nothing on other ranks.
        """
        rollouts: dict[tuple[int, int], Rollout] = {}
        total, done = sum(len(request.wanted) for request in requests), 0
        failure: Exception | None = None
        deadline = time.monotonic() + self._timeout_seconds

        def count(number: int, index: int, completion: Completion) -> None:
            nonlocal done, failure
            done += 1
            if not self.placement.is_leader or failure is not None:
                return
            try:
                rollouts[number, index] = share.receive(
                    number, index, completion, self.weight_version
                )
            except Exception as error:  # Later: the engine's other ranks go on.
                failure = error

        def check() -> None:
            end = self._end(deadline)
            if end is _End.STOPPED:
                raise RolloutStopped
            if end is _End.LATE:
                raise UserError(
                    f"generation did not end within {self._timeout_seconds:g} s "
                    f"({done} of {total} responses were done); raise"
                    " --rollout-timeout or lower --rollout-max-tokens"
                )

        tokenizer = self._tokenizer
        self._generator.run(requests, sampling, tokenizer.end_ids, count, check, tokenizer)
        if failure is not None:
            raise failure
        return rollouts

    def _end(self, deadline: float) -> _End:
        """Why any rank of this engine has to end: they must do so at the same step."""
        mine = _End.LATE if time.monotonic() > deadline else _End.NOT_YET
        if self.asked_to_stop():
            mine = _End.STOPPED
        end = torch.tensor([mine.value], dtype=torch.int32)
        if self.placement.tensor_parallel_size > 1:
            from vllm.distributed.parallel_state import get_tp_group

            dist.all_reduce(end, op=dist.ReduceOp.MAX, group=get_tp_group().cpu_group)
        return _End(int(end))
