"""Rules across the fields of the rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_longrl.config.rotary import RotarySection
    from megatron_longrl.config.training import TrainingSection


def rotary_embedding(rotary: RotarySection, training: TrainingSection) -> Iterator[str]:
    """A line for every rule that does not hold."""
    factor, kind = rotary.rope_scaling_factor, rotary.rope_scaling_type
    original = rotary.yarn_original_max_position_embeddings
    if factor is None:
        return
    if factor < 1:
        yield (
            f"rope_scaling_factor ({factor:g}) would shorten the context: give one of at least 1, "
            "or leave it out"
        )
    if rotary.mrope_section is not None and kind != "yarn":
        yield (
            f"rope_scaling_type {kind} has no meaning with mrope_section, which vLLM combines with "
            "yarn only: give --rope-scaling-type yarn, or no --rope-scaling-factor"
        )
    low, high = rotary.llama3_low_freq_factor, rotary.llama3_high_freq_factor
    if kind == "llama3" and low >= high:
        yield (
            f"llama3_low_freq_factor ({low:g}) is not below llama3_high_freq_factor ({high:g}): "
            "lower --llama3-low-freq-factor"
        )
    if kind != "yarn":
        return
    if original is None:
        yield (
            "rope_scaling_type yarn needs the context that is lengthened: give "
            "--yarn-original-max-position-embeddings N"
        )
    elif training.seq_length > original * factor:
        yield (
            f"seq_length ({training.seq_length}) exceeds yarn_original_max_position_embeddings "
            f"({original}) x rope_scaling_factor ({factor:g}): lower --seq-length or raise "
            "--rope-scaling-factor"
        )
    if rotary.yarn_beta_fast <= rotary.yarn_beta_slow:
        yield (
            f"yarn_beta_fast ({rotary.yarn_beta_fast:g}) is not above yarn_beta_slow "
            f"({rotary.yarn_beta_slow:g}): raise --yarn-beta-fast"
        )
