"""The reward of a response: a weighted sum of accuracy and format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from megatron_longrl.rewards.accuracy import accuracy_reward
from megatron_longrl.rewards.format import format_reward

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.rollout.types import Group


def score(groups: Sequence[Group], config: Config) -> None:
    """Fill in ``rewards`` [n] of every group, and its mean accuracy and format as metrics."""
    for group in groups:
        texts = [_visible(response.text) for response in group.responses]
        accuracy = torch.tensor([accuracy_reward(text, group.prompt.row.answer) for text in texts])
        form = torch.tensor([format_reward(text) for text in texts])
        group.rewards = (
            config.reward_accuracy_weight * accuracy + config.reward_format_weight * form
        )
        group.correct = accuracy
        group.metrics["accuracy"] = float(accuracy.mean())
        group.metrics["format"] = float(form.mean())


def _visible(text: str) -> str:
    """The response without the end-of-turn token that closes it."""
    return text.removesuffix("<|im_end|>")
