"""Does a checkpoint hold the model that the configuration describes?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from megatron_longrl.config.family import FAMILY_SECTIONS
from megatron_longrl.config.lora import LoraSection
from megatron_longrl.config.model import ModelSection, saved_family_section
from megatron_longrl.config.rotary import RotarySection
from megatron_longrl.config.section import Architecture, note_of
from megatron_longrl.config.sizes import WIDEST
from megatron_longrl.errors import UserError
from megatron_longrl.models.hf_settings import Settings
from megatron_longrl.models.policy import POLICIES

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig

LORA_FIELDS = tuple(LoraSection.flat_names())
"""Fields that decide which adapters there are and what they add."""

_SHOWN = 3


def check_architecture(saved: Mapping[str, Any], config: ModelConfig, where: object) -> None:
    """Compare the architecture of a checkpoint with the run's.

    Args:
        saved: fields of the checkpoint; those that it lacks are not compared.
        where: the checkpoint, for the message.

    Raises:
        UserError: naming the first fields that differ, with both values.
    """
    differing = differing_architecture(saved, config)
    if differing:
        raise UserError(
            f"{where} is a checkpoint of another architecture: {differing}; "
            "load a checkpoint of this model or change the model's fields"
        )


_OF_LANGUAGE_MODELS = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
"""Sizes that a language model cannot do without; a policy of another kind has none."""


def check_saved_fields(settings: Settings) -> None:
    """Are the fields of a checkpoint's configuration that decide its weights of their types, and of
    sizes that a model can have?

    Args:
        settings: the configuration; fields that it lacks are not looked at, nor are those of a
            family that a plugin of the configuration brings.

    Raises:
        UserError: naming the file and the field.
    """
    family = settings.values.get("model_family", ModelSection.model_fields["family"].default)
    # A family of a plugin that is not imported yet: the checkpoint itself tells which plugin it is.
    has_plugin = bool(settings.values.get("plugin"))
    is_unknown = isinstance(family, str) and family not in FAMILY_SECTIONS and has_plugin
    is_language_model = not (is_unknown or family in POLICIES)
    lora = {name: LoraSection.model_fields[own] for name, own in LoraSection.flat_names().items()}
    for name, field in (architecture_fields(settings.values) | lora).items():
        if name not in settings.values or (name == "model_family" and is_unknown):
            continue
        try:
            # As JSON: a list is a tuple, but a text is no number.
            value = _field_type(name, field).validate_json(
                json.dumps(settings.values[name]), strict=True
            )
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"].replace("Input should be", "not")
            raise settings.wrong(name, message) from None
        note = note_of(field, Architecture)
        most = WIDEST if name == "lora_rank" else note.most if note is not None else None
        if is_language_model and name == "vocab_size" and value is None:
            raise settings.wrong(name, "no whole number")
        if is_language_model and name in _OF_LANGUAGE_MODELS and value == 0:
            raise settings.wrong(name, "not above 0")
        if most is not None and value is not None and value > most:
            raise settings.wrong(name, f"more than {most}")
    heads = settings.values.get("num_attention_heads")
    groups = settings.values.get("num_query_groups")
    if heads and groups is not None and (groups == 0 or heads % groups):
        raise settings.wrong("num_query_groups", f"no divisor of num_attention_heads {heads}")


def _field_type(name: str, field: FieldInfo) -> TypeAdapter[Any]:
    annotated: Any = Annotated[field.annotation, name, *field.metadata]  # it needs a second one
    return TypeAdapter(annotated)


def check_adapters(saved: Mapping[str, Any], config: ModelConfig, where: object) -> None:
    """Compare the adapters of a checkpoint from which a run continues with the run's.

    Args:
        saved: fields of the checkpoint; older ones know no adapters.

    Raises:
        UserError: see :func:`check_architecture`.
    """
    if not saved.get("lora_rank") and not config.lora.rank:
        return
    differing = _differing({"lora_rank": 0, **saved}, config, LORA_FIELDS)
    if differing:
        raise UserError(
            f"{where} was trained with other adapters: {differing}; give the same --lora flags, or "
            "start from its weights, adapters merged, with --pretrained-checkpoint"
        )


def architecture_fields(values: Mapping[str, Any]) -> dict[str, FieldInfo]:
    """The fields that decide which weights there are and what they compute, by flat name.

    Args:
        values: the values of the model's fields; without a family, those of the default one.
    """
    return (
        ModelSection.architecture_fields()
        | RotarySection.architecture_fields()
        | saved_family_section(values).architecture_fields()
    )


def meaningful_fields(fields: Mapping[str, Any]) -> list[str]:
    """The architecture's fields that mean something with a model's scaling of positions.

    Args:
        fields: the fields of the model; without a family, the default one's.
    """
    kind = fields.get("rope_scaling_type") if fields.get("rope_scaling_factor") else None
    hidden = {"rope_scaling_type"} if kind is None else set()
    scalings = {"llama3", "yarn"} - {kind}
    return [
        name
        for name in architecture_fields(fields)
        if name not in hidden and name.split("_")[0] not in scalings
    ]


def architecture_of(config: ModelConfig) -> dict[str, Any]:
    """The fields that :func:`differing_architecture` compares; JSON."""
    values = config.flat()
    return {field: plain(values[field]) for field in architecture_fields(values)}


def differing_architecture(saved: Mapping[str, Any], config: ModelConfig) -> str:
    """The first fields that differ from the configuration, with both values; empty where none does.

    Args:
        saved: fields; those that it lacks are not compared.
    """
    return _differing(saved, config, list(architecture_fields(config.flat())))


def _differing(saved: Mapping[str, Any], config: ModelConfig, fields: Sequence[str]) -> str:
    ours = config.flat()
    differing = [
        f"{field} {plain(saved[field])} there, {plain(ours[field])} in the configuration"
        for field in fields
        if field in saved and plain(saved[field]) != plain(ours[field])
    ]
    more = len(differing) - _SHOWN
    return "; ".join(differing[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def plain(value: Any) -> Any:
    """Tuples are lists in JSON."""
    return list(value) if isinstance(value, tuple) else value
