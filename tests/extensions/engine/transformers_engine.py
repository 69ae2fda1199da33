"""A rollout engine on Hugging Face's modules, brought by

    longrl train-rl --plugin tests.extensions.engine.transformers_engine --rollout-engine NAME

Every rank of a replica has the whole language model and serves its own part of the prompts. It is
slow: each rollout is computed alone, without a key/value cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_longrl.config.engines import ENGINES, EngineKind
from megatron_longrl.experience.inputs import EngineInput, media_parts, place_media
from megatron_longrl.experience.rollouts import Completion
from megatron_longrl.rollout.base_engine import BaseEngine
from megatron_longrl.rollout.build import EngineContext
from megatron_longrl.rollout.engine_requests import EngineRequest, EngineRequests
from megatron_longrl.rollout.sampler import sample_tokens
from megatron_longrl.rollout.weights.receiver import WeightReceiver


class TransformersEngine(BaseEngine):
    """An engine for models whose positions count from 0 and that DeepStack does not reach."""

    def __init__(self, context: EngineContext) -> None:
        settings, groups = context.model_settings(), context.groups
        super().__init__(
            context.tokenizer,
            groups,
            max_model_len=settings.max_model_len,
            timeout_seconds=context.config.rollout.timeout,
            engine=groups.replica.rank(),
            num_engines=groups.replica.size(),
        )
        config = AutoConfig.for_model(**settings.hf_config)
        self._model = AutoModelForCausalLM.from_config(config).to(settings.torch_dtype).eval()
        self._no_token = settings.no_token
        shapes = {name: weight.shape for name, weight in self._model.named_parameters()}
        self._receiver = WeightReceiver(shapes, settings.torch_dtype)

    @torch.no_grad()
    def load_weights(self, named: Iterator[tuple[str, Tensor]]) -> None:
        """See the base class."""
        weights = dict(self._model.named_parameters())
        for name, tensor in self._receiver.passing(named):
            weights[name].copy_(tensor)
        self._receiver.check_complete()

    @torch.no_grad()
    def run(self, requests: EngineRequests) -> None:
        """See the base class."""
        for request in requests.requests:
            prompt = request.whole_prompt
            embeddings = self._model.get_input_embeddings()(prompt.token_ids)
            place_media(embeddings, prompt, media_parts(request.prompt, requests.media))
            ids, mask = prompt.token_ids, prompt.media_mask
            requests.record_input(
                request, EngineInput(ids, prompt.positions, embeddings, mask, None)
            )
            for index in request.wanted:
                completion = self._complete(embeddings, request, index, requests)
                requests.deliver(request, index, completion)

    def _complete(
        self, embeddings: Tensor, request: EngineRequest, index: int, requests: EngineRequests
    ) -> Completion:
        """Sample one rollout behind a prompt [P, h]."""
        began, generator = time.monotonic(), torch.Generator().manual_seed(request.seed + index)
        ids: list[int] = []
        logprobs: list[float] = []
        reason = "length"
        for _ in range(request.max_tokens):
            self.check_time()
            logits = self._model(inputs_embeds=embeddings[None]).logits[:, -1].float()
            token, logprob = sample_tokens(logits, requests.sampling, [generator], self._no_token)
            ids.append(int(token))
            logprobs.append(float(logprob))
            if ids[-1] in self.tokenizer.end_ids:
                reason = "stop"
                break
            embeddings = torch.cat([embeddings, self._model.get_input_embeddings()(token)])
        return Completion(ids, logprobs, reason, time.monotonic() - began)


ENGINES.register("transformers", EngineKind(TransformersEngine))
