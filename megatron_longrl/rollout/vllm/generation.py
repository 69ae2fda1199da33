"""The loop in which vLLM generates: requests in, responses out one by one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from megatron_longrl.experience.rollouts import Completion
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.requests import PromptRequest
from megatron_longrl.rollout.vllm.sampling_params import sampling_params

if TYPE_CHECKING:
    from vllm import RequestOutput

    from megatron_longrl.data.tokenizer import Tokenizer

_STEPS_BETWEEN_CHECKS = 16


class Generator:
    """Generates on one vLLM engine (``LLMEngine``)."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._names = itertools.count()

    def run(
        self,
        requests: Sequence[PromptRequest],
        sampling: SamplingSettings,
        end_ids: Sequence[int],
        on_completion: Callable[[int, int, Completion], None],
        check: Callable[[], None],
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Generate the responses of the requests.

        Args:
            end_ids: tokens that end a response.
            on_completion: gets (index of the request, index of the rollout, completion) of each as
                soon as it is complete.
            check: is called every few steps, and ends the generation by an exception.
            tokenizer: finds stop strings, where there are any.
        """
        from vllm.inputs.engine import embeds_input

        from megatron_longrl.rollout.vllm.stop import watch_for_stops

        began = time.monotonic()
        waiting: dict[str, tuple[int, int]] = {}  # request and response by vLLM's name for it
        try:
            for number, request in enumerate(requests):
                for index in request.wanted:
                    name = str(next(self._names))
                    waiting[name] = number, index
                    how = sampling_params(request, index, sampling, end_ids)
                    given = embeds_input(request.embeddings)
                    own_name = self._engine.add_request(name, given, how)
                    if sampling.stop_strings:
                        assert tokenizer is not None, "stop strings are found in text"
                        watch_for_stops(self._engine, own_name, tokenizer, how, request.prefix)
            steps = 0
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    on_completion(
                        *waiting.pop(output.request_id),
                        _completion(output, time.monotonic() - began),
                    )
                steps += 1
                if steps % _STEPS_BETWEEN_CHECKS == 0:
                    check()
        except BaseException:
            self._engine.abort_request(list(waiting))
            raise


def _completion(output: RequestOutput, seconds: float) -> Completion:
    (made,) = output.outputs
    token_ids = list(made.token_ids)
    logprobs: Any = made.logprobs
    assert len(logprobs.logprobs) == len(token_ids), "one log-probability per token"
    return Completion(token_ids, logprobs.logprobs, str(made.finish_reason), seconds)
