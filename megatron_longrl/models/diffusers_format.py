"""A policy in a folder of diffusers: which part of the pipeline it is, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.models.hf_settings import Settings
    from megatron_longrl.models.sizes import Sized


class Fused(NamedTuple):
    """A part of a tensor that holds several of the table's."""

    name: str
    """Name of the whole, as those of the mapping table."""
    part: int
    parts: int


def _not_fused(name: str) -> Fused | None:
    return None


@dataclass(frozen=True)
class DiffusersFormat:
    """The correspondence of a configuration to a folder that diffusers' pipelines save.

    Names of the mapping table begin with ``component`` and a slash.
    """

    pipeline: str
    """``_class_name`` of ``model_index.json``."""
    component: str
    """The folder of the model that is trained; all other components are frozen."""
    model_class: str
    """``_class_name`` of its ``config.json``."""
    config_from: Callable[[Settings], dict[str, Any]]
    """The component's ``config.json`` -> fields of the configuration."""
    scheduler_fields: Callable[[Settings], dict[str, Any]]
    """The scheduler's settings -> fields of the configuration."""
    settings: Callable[[ModelConfig], dict[str, Any]]
    """The inverse of ``config_from``, without the names of classes."""
    sizes: Callable[[Mapping[str, Any]], list[Sized]]
    """Fields of the configuration -> tensors whose shapes give its sizes."""
    fused: Callable[[str], Fused | None] = _not_fused
    """Name of the table -> where diffusers keeps this tensor once projections have been fused."""
