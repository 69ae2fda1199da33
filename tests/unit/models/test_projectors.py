"""VILA's projectors against a twin written from their description, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_longrl.cli.rules import validate_layout
from megatron_longrl.config import Config
from megatron_longrl.errors import UserError
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.vila.mapping import projector
from megatron_longrl.models.vila.projector import VilaProjector
from megatron_longrl.models.vila.projector_kinds import widths

FEATURES, HIDDEN, GRID = 6, 10, 5
LAYERS = {
    "linear": [""],
    "mlp1x_gelu": ["0"],
    "mlp3x_gelu": ["0", "2", "4"],
    "mlp_downsample": ["2", "4"],
    "mlp_downsample_2x2_fix": ["2", "4"],
    "mlp_downsample_3x3_fix": ["2", "5", "7"],
    "mlp_downsample_3x3_s2": ["2", "5", "8", "11", "13"],
    "mlp_downsample_3x3_s2_new": ["2", "5", "8", "11", "14", "16"],
}
"""Where VILA's checkpoints have the linear layers of each kind; the norms stand before them."""
NORMS = {
    "mlp_downsample": ["1"],
    "mlp_downsample_2x2_fix": ["1"],
    "mlp_downsample_3x3_fix": ["1", "4"],
    "mlp_downsample_3x3_s2": ["1", "4", "7", "10"],
    "mlp_downsample_3x3_s2_new": ["1", "4", "7", "10", "13"],
}


WIDTHS = {
    "mlp_downsample_3x3_s2": [(18, 54), (6, 18), (2, 6), (10, 2), (10, 10)],
    "mlp_downsample_3x3_s2_new": [(24, 54), (12, 24), (6, 12), (2, 6), (10, 2), (10, 10)],
}
"""Outputs and inputs of the linear layers: 9, 3, 1 and 1 / 3 times the features, or 9, 4, 2, 1 and
1 / 3, then those of the language model."""


def configured(kind: str) -> Config:
    return Config.of(
        {
            "num_layers": 1,
            "hidden_size": HIDDEN,
            "ffn_hidden_size": 8,
            "num_attention_heads": 1,
            "vision_image_size": GRID,
            "vision_patch_size": 1,
            "vision_hidden_size": FEATURES,
            "vision_num_layers": 2,
            "vision_num_attention_heads": 1,
            "vision_ffn_hidden_size": 8,
            "projector_type": kind,
            "seq_length": 64,
        }
    )


def cells(features: Tensor, side: int, by_columns: bool) -> Tensor:
    """side x side patches side by side, row by row in a cell; zeros outside the grid."""
    padded = torch.zeros(GRID + side, GRID + side, FEATURES, dtype=features.dtype)
    padded[:GRID, :GRID] = features.view(GRID, GRID, FEATURES)
    starts = range(0, GRID, side)
    places = [(row, column) for row in starts for column in starts]
    if by_columns:
        places = [(row, column) for column in starts for row in starts]
    return torch.stack([padded[r : r + side, c : c + side].flatten() for r, c in places])


def twin(kind: str, features: Tensor, weights: dict[str, Tensor]) -> Tensor:
    x = features
    if "downsample" in kind:
        x = cells(features, 3 if "3x3" in kind else 2, kind == "mlp_downsample")
    norms = NORMS.get(kind, [])
    for number, place in enumerate(LAYERS[kind]):
        if number:
            x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        if number < len(norms):
            name = f"layers.{norms[number]}"
            x = F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])
        name = f"layers.{place}".rstrip(".")
        x = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return x


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_every_kind(kind: str) -> None:
    torch.manual_seed(0)
    config = configured(kind)
    ours = VilaProjector(config.family_as(VilaSection), config.training, config.model)
    weights = {name: torch.randn_like(p).double() for name, p in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        parameter.copy_(weights[name])
    features = torch.randn(3, GRID * GRID, FEATURES)
    expected = torch.stack([twin(kind, frame, weights) for frame in features.double()])
    result = ours(features)
    assert result.shape[1] == config.family.tokens_per_frame
    torch.testing.assert_close(result, expected.float(), atol=1e-4, rtol=1e-4)
    shapes = [tuple(p.shape) for name, p in ours.named_parameters() if p.dim() == 2]
    assert shapes == WIDTHS.get(kind, shapes)
    places = [row.hf_params[0] for row in projector(config.family_as(VilaSection))]
    assert places == [f"mm_projector/{name}" for name in weights]


def test_other_kinds_are_named() -> None:
    for kind in ("mlp_downsample_4x4", "mlp0x_gelu", "resampler"):
        with pytest.raises(UserError, match=f"{kind} is not supported, only linear"):
            widths(kind, 1, 1)
        with pytest.raises(UserError, match="projector-type"):
            validate_layout(configured(kind), 1)
