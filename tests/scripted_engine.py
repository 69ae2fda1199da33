"""A rollout engine without a model: the test decides which responses are right.

Everything follows from the prompt, the number of the response and the training step, so that every
rank of a replica gives the same, as the protocol asks.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row, load_rows
from megatron_longrl.experience.inputs import (
    EngineInput,
    InputRecord,
    features_of,
    media_parts,
    place_media,
)
from megatron_longrl.experience.rollouts import (
    EngineStats,
    OnRollout,
    Rollout,
    RolloutGroup,
    RolloutRequest,
    Segment,
)
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.rollout.weights.receiver import EMBEDDING

Script = Callable[[int, int, int], bool]
"""(number of the question, which response, training step) -> whether it is right. Greedy answers
get the number of the last training step before them."""


class ScriptedEngine(RolloutEngine):
    """An engine whose responses are written down.

    Args:
        is_right: of a response; the rows' answer is A.
    """

    def __init__(self, is_right: Script) -> None:
        self.is_right = is_right
        self.weight_version = -1
        self.asked: list[tuple[int, list[int]]] = []
        """(round, numbers of the questions) of every call for training."""
        self.given: list[RolloutGroup] = []
        """What these calls returned."""
        self.digests: list[str] = []
        """Of all weights, by version."""
        self.stats = EngineStats()
        self._step = 0
        self._table = torch.empty(0)

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        media: Mapping[str, Tensor],
        sampling: SamplingSettings,
        on_rollout: OnRollout | None = None,
    ) -> list[RolloutGroup]:
        """See the protocol."""
        if sampling.temperature > 0:
            self._step = sampling.step
            numbers = [number_of(request.prompt.row) for request in requests]
            self.asked.append((sampling.round, numbers))
        groups = [
            RolloutGroup(
                request.group_id,
                request.prompt,
                [self._rollout(request, j) for j in range(sampling.n)],
                inputs=self._input(request.prompt, media),
            )
            for request in requests
        ]
        if sampling.temperature > 0:
            self.given += groups
        return groups

    def _input(self, prompt: Prompt, media: Mapping[str, Tensor]) -> InputRecord:
        """As a true engine would take it."""
        parts, width = media_parts(prompt, media), self._table.shape[1]
        embeddings = self._table[prompt.token_ids]
        place_media(embeddings, prompt, parts)
        features = features_of(parts, width, embeddings.dtype)
        ids, mask = prompt.token_ids, prompt.media_mask
        given = EngineInput(ids, prompt.positions, embeddings, mask, features)
        return given.record(len(ids), self.weight_version)

    def _rollout(self, request: RolloutRequest, index: int) -> Rollout:
        number = number_of(request.prompt.row)
        generator = torch.Generator().manual_seed(1000 * self._step + 10 * number + index)
        length = int(torch.randint(1, 9, (), generator=generator))
        letter = "A" if self.is_right(number, index, self._step) else "B"
        text = f"<think>so</think><answer>{letter}</answer>"
        return Rollout(
            group_id=request.group_id,
            index=index,
            token_ids=torch.randint(20, 60, (length,), generator=generator),
            logprobs=-5.7 + 0.3 * torch.randn(length, generator=generator),
            text=text,
            reward_text=text,
            finish_reason="stop",
            segments=(Segment(length, self.weight_version),),
        )

    def update_weights(self, named: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See the protocol."""
        digest = hashlib.sha256()
        for name, tensor in named:
            if name == EMBEDDING:
                self._table = tensor.detach().clone()
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().numpy().tobytes())
        self.digests.append(digest.hexdigest())
        self.weight_version = version

    def reset_prefix_cache(self) -> None:
        """See the protocol."""

    def close(self) -> None:
        """See the protocol."""


def questions(folder: Path, count: int) -> list[Row]:
    """Numbered questions about the videos of :func:`tests.distributed.layouts.write_data`."""
    rows = load_rows([str(folder)])
    return [
        dataclasses.replace(rows[k % len(rows)], problem_id=str(k), uid=f"question {k}")
        for k in range(count)
    ]


def number_of(row: Row) -> int:
    """Of a question."""
    return int(row.problem_id)
