"""Rollout engines on Hugging Face's modules, brought by

    longrl train-rl --plugin tests.extensions.engine.transformers_engine --rollout-engine NAME

Every rank of a replica has the whole language model and serves its own part of the prompts. It is
slow: each rollout is computed alone, without a key/value cache. The engine ``transformers``
generates while the trainer waits, ``transformers_beside`` in a thread beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_longrl.config.engines import ENGINES, EngineKind
from megatron_longrl.experience.inputs import EngineInput, media_parts, place_media
from megatron_longrl.experience.rollouts import Completion
from megatron_longrl.parallel.rank_errors import raise_on_all_ranks
from megatron_longrl.processes.daemon_thread import in_daemon_thread
from megatron_longrl.rollout.async_engine import AsyncEngine, Wait
from megatron_longrl.rollout.build import EngineContext
from megatron_longrl.rollout.engine import RolloutStopped
from megatron_longrl.rollout.engine_requests import EngineRequest, EngineRequests
from megatron_longrl.rollout.in_process_engine import InProcessEngine
from megatron_longrl.rollout.sampler import sample_tokens
from megatron_longrl.rollout.weights.receiver import WeightReceiver


class ServedModel:
    """A model whose positions count from 0 and that DeepStack does not reach."""

    def __init__(self, context: EngineContext) -> None:
        settings = context.model_settings()
        config = AutoConfig.for_model(**settings.hf_config)
        self._model = AutoModelForCausalLM.from_config(config).to(settings.torch_dtype).eval()
        self._no_token = settings.no_token
        self._end_ids = context.tokenizer.end_ids
        shapes = {name: weight.shape for name, weight in self._model.named_parameters()}
        self._receiver = WeightReceiver(shapes, settings.torch_dtype)

    @torch.no_grad()
    def load(self, named: Iterator[tuple[str, Tensor]]) -> None:
        """Take every weight once."""
        weights = dict(self._model.named_parameters())
        for name, tensor in self._receiver.passing(named):
            weights[name].copy_(tensor)
        self._receiver.check_complete()

    @torch.no_grad()
    def run(self, requests: EngineRequests, check_time: Callable[[], None]) -> None:
        """Generate what is asked for."""
        for request in requests.requests:
            prompt = request.whole_prompt
            embeddings = self._model.get_input_embeddings()(prompt.token_ids)
            place_media(embeddings, prompt, media_parts(request.prompt, requests.media))
            ids, mask = prompt.token_ids, prompt.media_mask
            requests.record_input(
                request, EngineInput(ids, prompt.positions, embeddings, mask, None)
            )
            for index in request.wanted:
                completion = self._complete(embeddings, request, index, requests, check_time)
                requests.deliver(request, index, completion)

    def _complete(
        self,
        embeddings: Tensor,
        request: EngineRequest,
        index: int,
        requests: EngineRequests,
        check_time: Callable[[], None],
    ) -> Completion:
        """Sample one rollout behind a prompt [P, h]."""
        began, generator = time.monotonic(), torch.Generator().manual_seed(request.seed + index)
        ids: list[int] = []
        logprobs: list[float] = []
        reason = "length"
        for _ in range(request.max_tokens):
            check_time()
            logits = self._model(inputs_embeds=embeddings[None]).logits[:, -1].float()
            token, logprob = sample_tokens(logits, requests.sampling, [generator], self._no_token)
            ids.append(int(token))
            logprobs.append(float(logprob))
            if ids[-1] in self._end_ids:
                reason = "stop"
                break
            embeddings = torch.cat([embeddings, self._model.get_input_embeddings()(token)])
        return Completion(ids, logprobs, reason, time.monotonic() - began)


class TransformersEngine(InProcessEngine):
    """It generates while the trainer waits."""

    def __init__(self, context: EngineContext) -> None:
        replica = context.groups.replica
        super().__init__(context.setup(engine=replica.rank(), num_engines=replica.size()))
        self._served = ServedModel(context)

    def load_weights(self, named: Iterator[tuple[str, Tensor]]) -> None:
        """See the base class."""
        self._served.load(named)

    def run(self, requests: EngineRequests) -> None:
        """See the base class."""
        self._served.run(requests, self.check_time)


class TransformersBeside(AsyncEngine):
    """It generates in a thread beside the trainer."""

    def __init__(self, context: EngineContext) -> None:
        replica = context.groups.replica
        super().__init__(context.setup(engine=replica.rank(), num_engines=replica.size()))
        self._served = ServedModel(context)
        self._running: Future[None] | None = None

    def update_weights(self, named: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See the base class; what is being generated ends with the weights that it began with."""
        if self._running is not None:
            wait([self._running])
        self.receive_weights(named, version, self._served.load)

    def submit(self, requests: EngineRequests) -> Wait:
        """See the base class."""
        running = in_daemon_thread(lambda: self._served.run(requests, self.check_time), "rollouts")
        self._running = running

        def finish(version: int) -> bool:
            stopped = False
            with raise_on_all_ranks(self.gloo_group):
                try:
                    running.result()
                except RolloutStopped:
                    stopped = True
            return stopped

        return finish


ENGINES.register("transformers", EngineKind(TransformersEngine))
ENGINES.register("transformers_beside", EngineKind(TransformersBeside))
