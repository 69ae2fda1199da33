"""What vLLM draws from, and the log-probabilities that it tells."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.sampler import sample_tokens
from megatron_longrl.rollout.vllm.logprobs import report_whole_softmax

LOGITS = torch.tensor([[1.0, 5.0, 2.0, 0.5, 9.0, 8.0]])
NO_TOKEN = [(1, 2), (4, 6)]


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_rows_without_a_token_are_out_of_reach_and_count_in_the_softmax(
    temperature: float | None,
) -> None:
    seen: list[torch.Tensor] = []

    def draw(logits: torch.Tensor, metadata: Any, mode: Any) -> tuple[torch.Tensor, None]:
        seen.append(logits.clone())
        return logits.argmax(dim=-1), None

    sampler: Any = SimpleNamespace(sample=draw)
    report_whole_softmax(sampler, NO_TOKEN)
    given = None if temperature is None else torch.tensor([temperature])
    metadata = SimpleNamespace(max_num_logprobs=0, temperature=given)
    drawn, logprobs = sampler.sample(LOGITS.clone(), metadata)
    assert drawn.tolist() == [2]
    assert seen[0].isinf().tolist() == [[False, True, False, False, True, True]]
    expected = (LOGITS / (temperature or 1.0)).log_softmax(dim=-1)
    torch.testing.assert_close(logprobs, expected)
    # The reference engine tells the same.
    settings = SamplingSettings(n=1, max_tokens=1, temperature=temperature or 0.0, top_k=1)
    token, logprob = sample_tokens(LOGITS, settings, [torch.Generator().manual_seed(1)], NO_TOKEN)
    assert token.tolist() == [2]
    torch.testing.assert_close(logprob, expected[:, 2])
