"""How much of VILA's vision tower runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_longrl.config import Config


def layers_to_run(config: Config) -> int:
    """Layers up to the hidden state that VILA selects (-2: all but the last one)."""
    feature_layer = config.vision_feature_layer
    hidden_states = config.vision_num_layers + 1
    return feature_layer if feature_layer >= 0 else hidden_states + feature_layer
