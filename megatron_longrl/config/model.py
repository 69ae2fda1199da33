"""Fields of the language model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from megatron_longrl.config.family import FAMILY_SECTIONS, FamilySection
from megatron_longrl.config.section import (
    Architecture,
    CountInt,
    Names,
    PositiveFloat,
    PositiveInt,
    Section,
    Unit,
)
from megatron_longrl.config.sizes import LARGEST_VOCABULARY, MOST_HEADS, MOST_LAYERS, WIDEST


def _known_family(name: str) -> str:
    problem = FAMILY_SECTIONS.unknown(name)
    if problem is not None:
        raise ValueError(problem)
    return name


FamilyName = Annotated[str, Names(FAMILY_SECTIONS.names), AfterValidator(_known_family)]


def _head_width(values: dict[str, Any]) -> int:
    heads = int(values["num_attention_heads"])
    return int(values["hidden_size"]) // heads if heads else 0


def _one_group_per_head(values: dict[str, Any]) -> int:
    return int(values["num_attention_heads"])


class ModelSection(Section):
    """model: the language model

    A checkpoint brings these fields, so that only a model that starts from random weights needs
    them in its recipe.
    """

    exceptions: ClassVar[Mapping[str, str]] = MappingProxyType({"family": "model_family"})

    family: Annotated[FamilyName, Architecture()] = "vila"
    """Architecture family: one of the package, or one that a --plugin module registers."""

    num_layers: Annotated[CountInt, Unit("layers"), Architecture(most=MOST_LAYERS)] = 0
    """Transformer layers of the language model."""

    hidden_size: Annotated[CountInt, Unit("channels"), Architecture(most=WIDEST)] = 0
    """Width of the language model."""

    ffn_hidden_size: Annotated[CountInt, Unit("channels"), Architecture(most=WIDEST)] = 0
    """Width of the gated feed-forward layers of the language model."""

    num_attention_heads: Annotated[CountInt, Unit("heads"), Architecture(most=MOST_HEADS)] = 0
    """Query heads of the language model."""

    num_query_groups: Annotated[CountInt, Unit("heads"), Architecture(most=MOST_HEADS)] = Field(
        default_factory=_one_group_per_head
    )
    """Key and value heads (grouped-query attention); by default one per query head."""

    kv_channels: Annotated[CountInt, Unit("channels"), Architecture(most=WIDEST)] = Field(
        default_factory=_head_width
    )
    """Width of one attention head; by default --hidden-size / --num-attention-heads."""

    vocab_size: Annotated[
        PositiveInt | None, Unit("entries"), Architecture(most=LARGEST_VOCABULARY)
    ] = None
    """Entries of the vocabulary, before padding; by default those of the tokenizer."""

    make_vocab_size_divisible_by: PositiveInt = 128
    """The vocabulary is padded to a multiple of this times the tensor-parallel size."""

    max_position_embeddings: Annotated[PositiveInt, Unit("tokens")] = 32768
    """Longest sequence that the architecture is meant for; --seq-length must not exceed it."""

    norm_epsilon: Annotated[PositiveFloat, Architecture()] = 1e-6
    """Epsilon of the language model's RMSNorm."""

    add_qkv_bias: Annotated[bool, Architecture()] = True
    """Bias on the query, key and value projections (as Qwen2 has)."""

    qk_layernorm: Annotated[bool, Architecture()] = False
    """RMSNorm on the queries and keys of every head (as Qwen3 has)."""

    untie_embeddings_and_output_weights: Annotated[bool, Architecture()] = False
    """Give the output layer its own weights instead of the word embeddings'."""

    init_method_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights, where no checkpoint gives them."""

    transformer_impl: Literal["local", "transformer_engine"] = "local"
    """Implementation of the language model's layers: local runs everywhere; transformer_engine
    needs CUDA and Transformer Engine, whose attention supports causal rows only
    (--no-shared-prompt)."""


def saved_family_section(saved: Mapping[str, Any]) -> type[FamilySection]:
    """Return the section of a saved configuration's family; without a family, that of the default
    one. An unknown family has no fields.

    Args:
        saved: the saved values by flat name; they need not be checked.
    """
    family = saved.get("model_family", ModelSection.model_fields["family"].default)
    known = isinstance(family, str) and family in FAMILY_SECTIONS
    return FAMILY_SECTIONS.find(family) if known else FamilySection
