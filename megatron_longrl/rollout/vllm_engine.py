"""vLLM inside the training program, one or more engines over the ranks of each model replica.

``external_launcher``: torchrun starts the ranks, every rank builds its own engine object
in-process, and the tensor-parallel ranks of an engine step together because they schedule the same
requests in the same order. Prompts go in as embeddings, so the engine needs the language model
only. This is the one design on CPU and GPU.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.parallel.agree import gather_objects, together
from megatron_longrl.parallel.groups import ParallelGroups
from megatron_longrl.platforms import platform
from megatron_longrl.rollout.inputs import EngineInput, InputRecord, check_requests, media_rows
from megatron_longrl.rollout.placement import place
from megatron_longrl.rollout.sampling import agreed_seeds, balanced_shares
from megatron_longrl.rollout.types import Group, Response, SamplingSettings
from megatron_longrl.rollout.vllm_deepstack import DeepStackFeed, with_features
from megatron_longrl.rollout.vllm_guest import (
    kept_random_state,
    leave_groups,
    unlink_shared_memory,
    vllm_start,
)
from megatron_longrl.rollout.vllm_limits import check_head_size, scheduling, weight_names
from megatron_longrl.rollout.vllm_positions import take_positions, with_positions

if TYPE_CHECKING:
    from vllm import RequestOutput

    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_EMBEDDING = "model.embed_tokens.weight"
_OUTPUT_LAYER = "lm_head.weight"
# A prompt's last block is prefilled for every response: small blocks share more of a short prompt.
_BLOCK_SIZE = {"cpu": 32, "cuda": 16}
_STEPS_BETWEEN_CLOCK_CHECKS = 16


@dataclass(frozen=True)
class _Draw:
    """A response on its way between ranks."""

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str


class VllmEngine:
    """A :class:`~megatron_longrl.rollout.engine.RolloutEngine` on vLLM.

    Construction is collective over the world: vLLM makes process groups of its own next to
    Megatron's, so torch.distributed is initialised before. One engine lives in a process at a time.
    The engine has no usable weights until the first :meth:`update_weights`.

    Args:
        hf_config: the language model's Hugging Face configuration (``llm/config.json``) as a dict.
        tokenizer: end-of-turn id and decoding.
        groups: the process groups of this rank.
        tensor_parallel_size: ranks per engine; None takes the most that fit. With fewer than the
            replica has, its engines share the prompts.
        dtype: of weights, embeddings and key/value cache: the training dtype.
        memory_gib: key/value cache of this rank.
        max_model_len: longest prompt with its response, in tokens.
        timeout_seconds: a generation that takes longer is an error.
        max_num_seqs: responses that are generated at a time.
        max_num_batched_tokens: tokens that the engine processes in one forward pass; on CPU at
            least ``max_model_len``.
        deepstack_levels: layers behind which DeepStack adds features of media.
        log_level: ``debug`` shows vLLM's log, other levels its warnings only.

    Raises:
        UserError: on every rank, when the size does not fit or the engine cannot start.
    """

    def __init__(
        self,
        hf_config: Mapping[str, Any],
        tokenizer: Tokenizer,
        groups: ParallelGroups,
        *,
        tensor_parallel_size: int | None,
        dtype: torch.dtype,
        memory_gib: float,
        max_model_len: int,
        timeout_seconds: float = 600.0,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 8192,
        log_level: str = "info",
        deepstack_levels: int = 0,
    ) -> None:
        self.weight_version = -1
        self.placement = place(tensor_parallel_size, hf_config, groups, socket.gethostname())
        self._tokenizer = tokenizer
        self._control = groups.replica_control
        self._dtype = dtype
        self._max_model_len = max_model_len
        self._timeout_seconds = timeout_seconds
        self._num_requests = 0
        # On CPU vLLM packs the output layer for its kernels, and a reload does not pack a tied one
        # again: there the engine holds the embedding twice.
        self._uses_mrope = "mrope_section" in (hf_config.get("rope_parameters") or {})
        self._copies_head = platform.name == "cpu" and bool(hf_config.get("tie_word_embeddings"))
        if self._copies_head:
            hf_config = {**hf_config, "tie_word_embeddings": False}
        self._expected_weights = weight_names(hf_config)
        self._token_embeddings: Tensor | None = None
        self._engine: Any = None
        instance = gather_objects(groups.control, secrets.token_hex(6))[0]
        with (
            together(groups.control),
            tempfile.TemporaryDirectory() as folder,
            vllm_start(instance, log_level),
        ):
            from vllm import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            check_head_size(hf_config)
            (Path(folder) / "config.json").write_text(json.dumps(dict(hf_config)))
            arguments = EngineArgs(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                generation_config="vllm",
                dtype=str(dtype).removeprefix("torch."),
                distributed_executor_backend="external_launcher",
                tensor_parallel_size=self.placement.tensor_parallel_size,
                enable_prompt_embeds=True,
                enable_prefix_caching=True,
                block_size=_BLOCK_SIZE[platform.name],
                kv_cache_memory_bytes=int(memory_gib * (1 << 30)),
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                **scheduling(max_num_batched_tokens, max_num_seqs, max_model_len),
                # What was really sampled from; equals the raw log-softmax at temperature 1.
                logprobs_mode="processed_logprobs",
                # Compiled graphs would not see what DeepStack adds.
                enforce_eager=platform.name == "cpu" or deepstack_levels > 0,
                async_scheduling=False,  # ranks of an engine must schedule alike
                disable_log_stats=True,
                seed=0,
            )
            try:
                self._engine = LLMEngine.from_engine_args(arguments)
            except Exception as error:
                leave_groups()
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                raise UserError(f"the rollout engine did not start: {reason}") from error
        unlink_shared_memory(instance)
        if self._uses_mrope:
            self._engine.collective_rpc(partial(_teach_media, deepstack_levels=deepstack_levels))

    def generate(
        self,
        prompts: Sequence[Prompt],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
    ) -> list[Group]:
        """See :meth:`RolloutEngine.generate`."""
        if self._token_embeddings is None:
            raise RuntimeError("generate() before the first update_weights()")
        if not prompts:
            return []
        seeds = agreed_seeds(prompts, sampling, self._control)
        costs = [len(prompt.token_ids) + sampling.n * sampling.max_tokens for prompt in prompts]
        share = balanced_shares(costs, self.placement.num_engines)[self.placement.engine]
        with together(self._control):
            check_requests(prompts, sampling, self._max_model_len)
            inputs = [self._input(prompts[index], media) for index in share]
        drawn: dict[int, tuple[InputRecord, list[_Draw]]] = {}
        with together(self._control), kept_random_state(), _no_compilation():
            outputs = self._run(inputs, [seeds[index] for index in share], sampling)
            if self.placement.is_leader:
                drawn = {
                    index: (given.record(), self._draws(output))
                    for index, given, output in zip(share, inputs, outputs, strict=True)
                }
        everyone: dict[int, tuple[InputRecord, list[_Draw]]] = {}
        for part in gather_objects(self._control, drawn):
            everyone.update(part)
        return [
            Group(
                prompt,
                [self._response(draw) for draw in everyone[index][1]],
                inputs=everyone[index][0],
            )
            for index, prompt in enumerate(prompts)
        ]

    def update_weights(self, named: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See :meth:`RolloutEngine.update_weights`."""
        remaining = iter(named)
        with together(self._control), kept_random_state():
            seen: set[str] = set()
            try:
                self._engine.collective_rpc(
                    lambda worker: worker.model_runner.reload_weights(
                        weights_iterator=self._noting(remaining, seen)
                    )
                )
            finally:
                # The iterator may communicate: use it up even when loading failed on this rank.
                for _ in remaining:
                    pass
            missing = sorted(self._expected_weights - seen)
            if missing:
                raise UserError(
                    f"{len(missing)} weights did not reach the rollout engine, {missing[0]} for"
                    " one: the model's name mapping does not cover its Hugging Face configuration"
                )
            if not self._engine.reset_prefix_cache():
                raise RuntimeError("vLLM kept its prefix cache: requests are still running")
        self.weight_version = version

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
        self._token_embeddings = None

    def _noting(
        self, named: Iterator[tuple[str, Tensor]], seen: set[str]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in named:
            seen.add(name)
            if name == _EMBEDDING:
                # A copy: the tensor may be the parameter that the optimizer updates in place.
                self._token_embeddings = tensor.detach().to("cpu", self._dtype, copy=True)
                if self._copies_head:
                    seen.add(_OUTPUT_LAYER)
                    yield _OUTPUT_LAYER, tensor
            yield name, tensor

    def _input(self, prompt: Prompt, media: Mapping[str, Tensor]) -> EngineInput:
        """The live embeddings of the text with the media's embeddings in their slots."""
        assert self._token_embeddings is not None
        return EngineInput.of(
            prompt,
            F.embedding(prompt.token_ids.cpu(), self._token_embeddings),
            media_rows(prompt, media, self._dtype),
            # By itself vLLM counts from 0.
            prompt.positions if self._uses_mrope else torch.arange(len(prompt.token_ids)),
        )

    def _extra(self, given: EngineInput) -> dict[str, Any]:
        """What the request's sampling parameters carry beside."""
        extra = with_positions(given.positions) if self._uses_mrope else {}
        if given.features is not None:
            extra |= with_features(given.media_mask, given.features)
        return extra

    def _run(
        self, inputs: Sequence[EngineInput], seeds: Sequence[int], sampling: SamplingSettings
    ) -> list[RequestOutput]:
        """Generate on this rank's engine; one output with n completions per prompt, in order."""
        from vllm import SamplingParams
        from vllm.inputs.engine import embeds_input
        from vllm.sampling_params import RequestOutputKind

        names = []
        for given, seed in zip(inputs, seeds, strict=True):
            names.append(str(self._num_requests))
            self._num_requests += 1
            parameters = SamplingParams(
                n=sampling.n,  # response j draws with seed + j (vLLM's ParentRequest)
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=seed if sampling.temperature > 0 else None,
                max_tokens=sampling.max_tokens,
                stop_token_ids=[self._tokenizer.eos_id] if sampling.stop else [],
                ignore_eos=not sampling.stop,
                logprobs=0,  # of the sampled token only
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                extra_args=self._extra(given) or None,
            )
            self._engine.add_request(names[-1], embeds_input(given.embeddings), parameters)
        finished: dict[str, RequestOutput] = {}
        deadline = time.monotonic() + self._timeout_seconds
        steps = 0
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    finished[output.request_id] = output
            steps += 1
            if steps % _STEPS_BETWEEN_CLOCK_CHECKS == 0 and self._is_late(deadline):
                self._engine.abort_request(names)
                raise UserError(
                    f"generation did not end within {self._timeout_seconds:g} s ({len(finished)} of"
                    f" {len(names)} prompts were done); raise --rollout-timeout or lower"
                    " --rollout-max-tokens"
                )
        return [finished[name] for name in names]

    def _is_late(self, deadline: float) -> bool:
        """Whether any rank of this engine is past the deadline: they must stop at the same step."""
        late = torch.tensor([time.monotonic() > deadline], dtype=torch.int32)
        if self.placement.tensor_parallel_size > 1:
            from vllm.distributed.parallel_state import get_tp_group

            dist.all_reduce(late, op=dist.ReduceOp.MAX, group=get_tp_group().cpu_group)
        return bool(late)

    def _draws(self, output: RequestOutput) -> list[_Draw]:
        draws = []
        for completion in sorted(output.outputs, key=lambda completion: completion.index):
            token_ids = list(completion.token_ids)
            logprobs: Any = completion.logprobs
            assert len(logprobs.logprobs) == len(token_ids), "one log-probability per token"
            draws.append(
                _Draw(
                    token_ids,
                    logprobs.logprobs,
                    self._tokenizer.decode(token_ids),
                    str(completion.finish_reason),
                )
            )
        return draws

    def _response(self, draw: _Draw) -> Response:
        return Response(
            token_ids=torch.tensor(draw.token_ids, dtype=torch.long),
            logprobs=torch.tensor(draw.logprobs, dtype=torch.float32),
            text=draw.text,
            finish_reason=draw.finish_reason,
            weight_version=self.weight_version,
        )


def _teach_media(worker: Any, deepstack_levels: int) -> None:
    """What vLLM knows of media only behind its own vision towers."""
    worker.model_runner._init_mrope_positions = take_positions
    if deepstack_levels:
        DeepStackFeed(worker.model_runner, deepstack_levels)


def _no_compilation() -> Any:
    """On CPU vLLM would compile a helper (ranks of log-probabilities) for 18 s, to run slower."""
    if platform.name == "cpu":
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
