"""The kinds of projectors that VILA's checkpoints name, and their widths."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal

from megatron_longrl.errors import UserError


def downsampling(kind: str) -> int:
    """Side of the block of patches that becomes one token in a projector of this kind."""
    if kind.startswith("mlp_downsample"):
        return 3 if "3x3" in kind else 2
    return 1


def widths(kind: str, features: int, hidden: int) -> tuple[list[int], bool]:
    """Widths between which the linear layers of a projector lie, a GELU between two of them.

    Args:
        features: channels of the vision features.
        hidden: the width of the language model.

    Returns:
        The widths, and whether all layers but the last one begin with a LayerNorm.

    Raises:
        UserError: the kind is not known.
    """
    joined = features * downsampling(kind) ** 2
    if kind in ("mlp_downsample", "mlp_downsample_2x2_fix"):
        return [joined, hidden, hidden], True
    if kind == "mlp_downsample_3x3_fix":
        return [joined, 3 * features, hidden, hidden], True
    third = features // 3
    if kind == "mlp_downsample_3x3_s2":
        return [joined, 3 * features, features, third, hidden, hidden], True
    if kind == "mlp_downsample_3x3_s2_new":
        return [joined, 4 * features, 2 * features, features, third, hidden, hidden], True
    if kind == "linear":
        return [features, hidden], False
    match = re.fullmatch(r"mlp([1-9]\d?)x_gelu", kind)
    if match:
        return [features] + [hidden] * int(match[1]), False
    known = "linear, mlp2x_gelu (1 to 99), mlp_downsample, _2x2_fix, _3x3_fix, _3x3_s2, _3x3_s2_new"
    raise UserError(f"--projector-type {kind} is not supported, only {known}")


Layer = Literal["downsample", "gelu", "norm", "linear"]


def projector_layers(kind: str, features: int, hidden: int) -> list[tuple[Layer, int, int]]:
    """The layers of a projector in order, each with its inner and outer width.

    Args, errors: see :func:`widths`.
    """
    between, normed = widths(kind, features, hidden)
    layers: list[tuple[Layer, int, int]] = []
    if downsampling(kind) > 1:
        layers.append(("downsample", features, between[0]))
    last = len(between) - 2
    for number, (inner, outer) in enumerate(pairwise(between)):
        if number:
            layers.append(("gelu", inner, inner))
        if normed and number < last:
            layers.append(("norm", inner, inner))
        layers.append(("linear", inner, outer))
    return layers


def parameter_names(kind: str) -> list[str]:
    """Names of a projector's parameters, in the order of its layers, as VILA's checkpoints count
    them. A single layer is alone there."""
    if kind == "linear":
        places = ["layers"]
    else:
        layers = enumerate(projector_layers(kind, 3, 1))
        places = [f"layers.{n}" for n, (what, *_) in layers if what in ("norm", "linear")]
    return [f"{place}.{which}" for place in places for which in ("weight", "bias")]
