"""Weights of a language model on both sides, as transformers' Qwen2, Qwen3 and Llama name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron_longrl.models.param_mapping import (
    QKV,
    DirectMapping,
    GatedMLP,
    RowParallel,
    TensorMapping,
    TiedMapping,
    VocabParallel,
)
from megatron_longrl.models.sizes import Sized

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.model import ModelSection


def language_model(
    config: ModelConfig, body: str = "model.", output: str = "lm_head."
) -> tuple[TensorMapping, ...]:
    """Entries of the part ``llm``.

    Args:
        body: the prefix of the names of all tensors but the output layer's.
        output: the prefix of the output layer's name.

    Raises:
        ValueError: the vocabulary's size is not known yet.
    """
    padded, vocab_size = config.padded_vocab_size, config.model.vocab_size
    assert vocab_size is not None  # padded_vocab_size raises
    ours, theirs = "language_model.decoder.layers.*.", f"llm/{body}layers.*."
    embedding, head = f"llm/{body}embed_tokens.weight", f"llm/{output}weight"
    # Transformer Engine fuses the norms with the linear layers behind them.
    before_attention, before_mlp = "input_layernorm.", "pre_mlp_layernorm."
    if config.model.transformer_impl == "transformer_engine":
        before_attention = "self_attention.linear_qkv.layer_norm_"
        before_mlp = "mlp.linear_fc1.layer_norm_"
    output_layer = "language_model.output_layer.weight"
    return (
        VocabParallel(
            "language_model.embedding.word_embeddings.weight",
            (embedding,),
            vocab_size=vocab_size,
            padded_vocab_size=padded,
        ),
        DirectMapping(f"{ours}{before_attention}weight", (f"{theirs}input_layernorm.weight",)),
        *_attention(config.model, f"{ours}self_attention.", f"{theirs}self_attn."),
        DirectMapping(f"{ours}{before_mlp}weight", (f"{theirs}post_attention_layernorm.weight",)),
        GatedMLP(
            f"{ours}mlp.linear_fc1.weight",
            (f"{theirs}mlp.gate_proj.weight", f"{theirs}mlp.up_proj.weight"),
        ),
        RowParallel(f"{ours}mlp.linear_fc2.weight", (f"{theirs}mlp.down_proj.weight",)),
        DirectMapping("language_model.decoder.final_layernorm.weight", (f"llm/{body}norm.weight",)),
        VocabParallel(output_layer, (head,), vocab_size=vocab_size, padded_vocab_size=padded)
        if config.model.untie_embeddings_and_output_weights
        else TiedMapping(
            output_layer,
            (embedding,),
            vocab_size=vocab_size,
            padded_vocab_size=padded,
            alias=head,
        ),
    )


def language_sizes(fields: Mapping[str, Any], body: str = "model.") -> list[Sized]:
    """Tensors whose shapes give the sizes of the language model.

    Args:
        fields: the fields of the configuration.
        body: see :func:`language_model`.
    """
    hidden = ("hidden_size", fields["hidden_size"])
    width, layers = fields["kv_channels"], fields["num_layers"]
    first, last = (f"llm/{body}layers.{layer}." for layer in (0, layers - 1))
    queries = ("num_attention_heads x head_dim", fields["num_attention_heads"] * width)
    keys = ("num_key_value_heads x head_dim", fields["num_query_groups"] * width)
    inner = ("intermediate_size", fields["ffn_hidden_size"])
    vocabulary = ("vocab_size", fields["vocab_size"])
    return [
        Sized(f"llm/{body}embed_tokens.weight", (vocabulary, hidden)),
        Sized(f"{first}self_attn.q_proj.weight", (queries, hidden)),
        Sized(f"{first}self_attn.k_proj.weight", (keys, hidden)),
        Sized(f"{first}mlp.gate_proj.weight", (inner, hidden)),
        Sized(f"{last}input_layernorm.weight", (hidden,), ("num_hidden_layers", layers)),
    ]


def _attention(model: ModelSection, ours: str, theirs: str) -> tuple[TensorMapping, ...]:
    heads, groups = model.num_attention_heads, model.num_query_groups
    projections = tuple(
        QKV(
            f"{ours}linear_qkv.{kind}",
            tuple(f"{theirs}{which}_proj.{kind}" for which in "qkv"),
            num_heads=heads,
            num_query_groups=groups,
        )
        for kind in (("weight", "bias") if model.add_qkv_bias else ("weight",))
    )
    norms = tuple(
        DirectMapping(f"{ours}{which}_layernorm.weight", (f"{theirs}{which}_norm.weight",))
        for which in ("qk" if model.qk_layernorm else "")
    )
    output = RowParallel(f"{ours}linear_proj.weight", (f"{theirs}o_proj.weight",))
    return (*projections, *norms, output)
