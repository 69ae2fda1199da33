"""The trained model as its own rollout engine, on megatron-core's static inference context.

A reference that shares nothing with vLLM but the prompt, for tests, and for debugging where vLLM is
not. It has no batching over prompts, no paging and no prefix cache: a prompt goes through the model
at once, its keys and values are copied for each response, and all responses of a group are decoded
in step. Every MR-SP rank generates for its own share of the prompts, with the tensor-parallel and
pipeline ranks that belong to it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.experience.inputs import (
    EngineInput,
    features_of,
    media_parts,
    place_media,
)
from megatron_longrl.experience.rollouts import Completion
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.models.deepstack import DeepStack, DeepStackParams
from megatron_longrl.models.language import (
    embed_tokens,
    hidden_for_logits,
    output_weight,
    run_decoder,
)
from megatron_longrl.parallel.attention.mask import attention_mask
from megatron_longrl.parallel.attention.module import cp_packed_seq_params
from megatron_longrl.platforms import platform
from megatron_longrl.rollout.base_engine import EngineSetup
from megatron_longrl.rollout.engine import RolloutStopped
from megatron_longrl.rollout.engine_requests import EngineRequest, EngineRequests
from megatron_longrl.rollout.in_process_engine import InProcessEngine
from megatron_longrl.rollout.sampler import sample_tokens

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt

_TOKENS_BETWEEN_CLOCK_CHECKS = 16


class MegatronEngine(InProcessEngine):
    """An engine on the trained model itself.

    Args:
        setup: the setup of one engine for every MR-SP rank.
        gpt: this rank's part of the model; its weights are always the present ones.
        vocab_size: tokens of the vocabulary, without padding.
        no_token: ids among them that have no token and are never drawn, as ranges.
    """

    def __init__(
        self,
        setup: EngineSetup,
        gpt: GPTModel,
        *,
        vocab_size: int,
        no_token: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(setup)
        groups = setup.groups
        self._gpt = gpt
        self._groups = groups
        self._vocab_size = vocab_size
        self._no_token = no_token
        self._p2p = P2PCommunicator(groups.pp, gpt.config)

    @torch.no_grad()
    def run(self, requests: EngineRequests) -> None:
        """See :meth:`InProcessEngine.run`; a rank of the first stage records inputs, and one of the
        last stage delivers."""
        ranks = self._groups
        with _for_inference(self._gpt):
            for request in requests.requests:
                given = self._input(
                    request.whole_prompt, media_parts(request.prompt, requests.media)
                )
                completions = self._complete(given, request, requests.sampling)
                if ranks.tp.rank() == 0 and given is not None:
                    requests.record_input(request, given)
                if ranks.tp.rank() == 0 and ranks.is_last_stage:
                    for index, completion in zip(request.wanted, completions, strict=True):
                        requests.deliver(request, index, completion)

    def update_weights(self, named: Iterable[tuple[str, Tensor]], version: int) -> None:
        """The model has them already, so that nothing is read from ``named``."""
        self.weight_version = version
        self.stats = self.stats.plus(weight_updates=1)

    def _input(self, prompt: Prompt, parts: Sequence[Tensor]) -> EngineInput | None:
        """The prompt with its embeddings, on the first pipeline stage; collective over TP."""
        if not self._groups.is_first_stage:
            return None
        embeddings = embed_tokens(self._gpt, prompt.token_ids.to(platform.device)[None])[0]
        place_media(embeddings, prompt, parts)
        features = features_of(parts, embeddings.shape[1], embeddings.dtype)
        mask = prompt.media_mask.to(embeddings.device)
        return EngineInput(prompt.token_ids, prompt.positions, embeddings, mask, features)

    def _complete(
        self, given: EngineInput | None, request: EngineRequest, sampling: SamplingSettings
    ) -> list[Completion]:
        """Sample the wanted rollouts to a prompt; collective over TP and PP ranks."""
        began, device = time.monotonic(), platform.device
        prompt = request.whole_prompt
        n, length = len(request.wanted), len(prompt.token_ids)
        context = StaticInferenceContext(n, length + request.max_tokens)
        generators = [torch.Generator(device).manual_seed(request.seed + j) for j in request.wanted]
        positions = prompt.positions.to(device)
        logits = self._prefill(given, positions, context)
        # Every response gets a copy of the prompt's keys and values.
        context.swap_key_value_dict([0] * n)
        context.enable_decode_mode()
        tokens: list[list[int]] = [[] for _ in range(n)]
        logprobs: list[list[float]] = [[] for _ in range(n)]
        ends: dict[int, str] = {}
        for step in range(1, request.max_tokens + 1):
            drawn, chosen = self._draw(logits, n, sampling, generators)
            for k, (token, logprob) in enumerate(zip(drawn.tolist(), chosen.tolist(), strict=True)):
                if k not in ends:
                    tokens[k].append(token)
                    logprobs[k].append(logprob)
                    if self._ends(request.prefix, tokens[k], sampling):
                        ends[k] = "stop"
            if len(ends) == n or step == request.max_tokens:
                break
            if step % _TOKENS_BETWEEN_CLOCK_CHECKS == 0:
                self._check_clock(prompt)
            # Text goes on from the last position, the same in time, height and width.
            positions = torch.cat([positions, positions[-1:].amax().expand_as(positions[:1]) + 1])
            embeddings = embed_tokens(self._gpt, drawn[:, None]) if given is not None else None
            logits = self._forward(embeddings, n, 1, positions, None, None, context)
        seconds = time.monotonic() - began
        return [
            Completion(tokens[k], logprobs[k], ends.get(k, "length"), seconds) for k in range(n)
        ]

    def _ends(self, prefix: Tensor, tokens: Sequence[int], sampling: SamplingSettings) -> bool:
        """Whether the newest token ends its response."""
        if sampling.stop and tokens[-1] in self.tokenizer.end_ids:
            return True
        if not sampling.stop_strings:
            return False
        text = self.tokenizer.decode([*prefix.tolist(), *tokens])
        return any(stop in text for stop in sampling.stop_strings)

    def _prefill(
        self, given: EngineInput | None, positions: Tensor, context: StaticInferenceContext
    ) -> Tensor | None:
        """Run the prompt and return the logits [1, v] of the next token, on the last stage."""
        length = len(positions)
        mask = None  # Transformer Engine's layers are causal by themselves.
        if self._gpt.config.transformer_impl == "local":
            branches = torch.zeros(1, length, dtype=torch.long)
            mask = attention_mask(branches, self._groups.self_group, "all_gather", platform.device)
        embeddings, deepstack = None, None
        if given is not None:
            embeddings = given.embeddings[None]
            if given.features is not None:
                levels = given.features.to(embeddings).split(embeddings.shape[2], dim=1)
                deepstack = DeepStack(given.media_mask[None], levels)
        return self._forward(embeddings, 1, length, positions, mask, deepstack, context)

    def _forward(
        self,
        embeddings: Tensor | None,
        rows: int,
        length: int,
        positions: Tensor,
        mask: Tensor | None,
        deepstack: DeepStack | None,
        context: StaticInferenceContext,
    ) -> Tensor | None:
        """Run ``length`` tokens of ``rows`` sequences through all stages.

        Args:
            embeddings: [rows, length, h] on the first stage.
            positions: [s] or [s, 3] of the whole sequence so far, the same for all rows.

        Returns:
            float32 [rows, v] behind the last token, on the last stage.
        """
        gpt, ranks = self._gpt, self._groups
        shape = (length, rows, gpt.config.hidden_size)
        received = self._p2p.recv_forward(shape, ranks.is_first_stage)
        gpt.set_input_tensor(received)
        hidden = run_decoder(
            gpt,
            embeddings.transpose(0, 1).contiguous() if embeddings is not None else None,
            positions[None],
            mask,
            DeepStackParams.beside(cp_packed_seq_params(ranks.self_group), deepstack),
            context,
        )
        context.increment_sequence_len_offset(length)
        if not ranks.is_last_stage:
            self._p2p.send_forward(hidden, ranks.is_last_stage)
            return None
        last = hidden_for_logits(gpt, hidden[-1:])[0]
        part = torch.matmul(last, output_weight(gpt).t()).float()
        logits = gather_from_tensor_model_parallel_region(part, group=ranks.tp)
        return logits[:, : self._vocab_size]

    def _draw(
        self,
        logits: Tensor | None,
        n: int,
        sampling: SamplingSettings,
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, Tensor]:
        """The next tokens [n], on all stages, and their log-probabilities, on the last one."""
        tokens = torch.zeros(n, dtype=torch.long, device=platform.device)
        logprobs = torch.zeros(n, device=platform.device)
        if logits is not None:
            tokens, logprobs = sample_tokens(
                logits.expand(n, -1), sampling, generators, self._no_token
            )
        ranks = self._groups
        if ranks.pp.size() > 1:
            dist.broadcast(tokens, src=ranks.pp_last_rank, group=ranks.pp)
        return tokens, logprobs

    def _check_clock(self, prompt: Prompt) -> None:
        """End on all ranks that generate together, when one of them is late or asked to stop."""
        mine = [float(self.is_late()), float(self.asked_to_stop())]
        ends = torch.tensor(mine, device=platform.device)
        dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=self._groups.pg.mp)
        late, stopped = ends.tolist()
        if stopped:
            raise RolloutStopped
        if late:
            raise UserError(
                f"generation did not end within {self.timeout_seconds:g} s (at prompt "
                f"{prompt.uid}); raise --rollout-timeout or lower --rollout-max-tokens"
            )


@contextmanager
def _for_inference(gpt: GPTModel) -> Iterator[None]:
    """No recomputation, and whole sequences on every TP rank: one token cannot be scattered.

    Not by core's set_model_to_sequence_parallel (transformer/utils.py:310): that finds modules by
    the ``id`` of a model, which a later model may have again.
    """
    training = gpt.training
    scattered = [m for m in gpt.modules() if getattr(m, "sequence_parallel", False)]
    configs = {id(m.config): m.config for m in gpt.modules() if hasattr(m, "config")}
    configs = {key: config for key, config in configs.items() if config.sequence_parallel}
    gpt.eval()
    for place in (*scattered, *configs.values()):
        place.sequence_parallel = False
    try:
        yield
    finally:
        for place in (*scattered, *configs.values()):
            place.sequence_parallel = True
        gpt.train(training)
