"""Language models (Qwen2, Qwen3, Llama): megatron-core's GPTModel with our layer spec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from megatron.core import tensor_parallel
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)
from torch import Tensor

from megatron_longrl.models.deepstack import install_deepstack
from megatron_longrl.models.lora import LoraOptions, adapted, lora_options
from megatron_longrl.models.norms import FUSED_NORMS, TorchNorm
from megatron_longrl.models.rotary import (
    attention_sharpening,
    channel_axes,
    rotary_angles,
    scaled_frequencies,
)
from megatron_longrl.models.swiglu import SwiGLU
from megatron_longrl.models.transformer_engine import fused_block_spec
from megatron_longrl.parallel.attention.module import MaskedAttention
from megatron_longrl.platforms import platform

if TYPE_CHECKING:
    from megatron.core.inference.contexts import BaseInferenceContext

    from megatron_longrl.config import ModelConfig
    from megatron_longrl.config.lora import LoraSection
    from megatron_longrl.config.model import ModelSection
    from megatron_longrl.config.parallel import ParallelSection
    from megatron_longrl.config.rotary import RotarySection
    from megatron_longrl.config.training import TrainingSection
    from megatron_longrl.parallel.groups import ParallelGroups


def layer_spec(
    attn_mask_type: AttnMaskType,
    qk_layernorm: bool = False,
    core_attention: ModuleSpec | type = MaskedAttention,
    lora: LoraOptions | None = None,
) -> ModuleSpec:
    """A pre-norm transformer layer; by default with attention over MR-SP shards.

    The key map keeps distributed checkpoints compatible with Transformer Engine's fused layers.
    """
    qk_norm = TorchNorm if qk_layernorm else IdentityOp
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=TorchNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": attn_mask_type},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=adapted(ColumnParallelLinear, "linear_qkv", lora),
                    core_attention=core_attention,
                    linear_proj=adapted(RowParallelLinear, "linear_proj", lora),
                    q_layernorm=qk_norm,
                    k_layernorm=qk_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=TorchNorm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=adapted(ColumnParallelLinear, "linear_fc1", lora),
                    linear_fc2=adapted(RowParallelLinear, "linear_fc2", lora),
                    activation_func=SwiGLU,  # only where it is asked for below
                ),
            ),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=dict(FUSED_NORMS),
        ),
    )


def block_spec(
    num_layers: int,
    attn_mask_type: AttnMaskType,
    qk_layernorm: bool = False,
    lora: LoraOptions | None = None,
) -> TransformerBlockSubmodules:
    """``num_layers`` layers and the final norm."""
    layer = layer_spec(attn_mask_type, qk_layernorm, lora=lora)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=TorchNorm)


def common_transformer_options(training: TrainingSection, model: ModelSection) -> dict[str, Any]:
    """Options that the language model and the vision tower share."""
    return {
        "params_dtype": training.params_dtype,
        "bf16": training.bf16,
        "pipeline_dtype": training.params_dtype,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method_std": model.init_method_std,
        "use_cpu_initialization": False,
        # Gradients are sums over tokens, divided once by the global count: DDP must not average.
        "calculate_per_token_loss": True,
        # Fused kernels of Transformer Engine, apex or torch.compile.
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
        "apply_rope_fusion": False,
    }


def language_transformer_config(config: ModelConfig) -> TransformerConfig:
    """megatron-core's configuration of the language model."""
    sharpening = attention_sharpening(config.rotary)
    return TransformerConfig(
        num_layers=config.model.num_layers,
        hidden_size=config.model.hidden_size,
        ffn_hidden_size=config.model.ffn_hidden_size,
        num_attention_heads=config.model.num_attention_heads,
        num_query_groups=config.model.num_query_groups,
        kv_channels=config.model.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=config.model.norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        use_te_activation_func=config.model.transformer_impl == "local",  # that of our layer_spec
        add_bias_linear=False,
        add_qkv_bias=config.model.add_qkv_bias,
        # YaRN multiplies whole queries and keys: scores may as well have it, squared.
        softmax_scale=sharpening**2 * config.model.kv_channels**-0.5 if sharpening != 1 else None,
        qk_layernorm=config.model.qk_layernorm,
        tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.parallel.pipeline_model_parallel_size,
        context_parallel_size=config.parallel.context_parallel_size,
        # One for all layers: core takes the wrong ones of a list (transformer_layer.py:297).
        cp_comm_type=config.parallel.cp_comm_type,
        transformer_impl=config.model.transformer_impl,
        sequence_parallel=config.parallel.sequence_parallel,
        variable_seq_lengths=config.parallel.pipeline_model_parallel_size > 1,
        # core asks for this dispatcher with variable lengths, experts or not.
        moe_token_dispatcher_type="alltoall",
        batch_p2p_comm=False,
        recompute_granularity=config.training.recompute_granularity,
        recompute_method="uniform" if config.training.recompute_granularity == "full" else None,
        recompute_num_layers=1 if config.training.recompute_granularity == "full" else None,
        mrope_section=list(mrope_sections(config.rotary, config.model)),
        **common_transformer_options(config.training, config.model),
    )


def mrope_sections(rotary: RotarySection, model: ModelSection) -> tuple[int, int, int]:
    """Rotary channels of time, height and width.

    Three equal position components make multimodal rotary embedding ordinary rotary embedding, so
    any split of the channels is right for text-position models.
    """
    return rotary.mrope_section or (model.kv_channels // 2, 0, 0)


def language_block_spec(
    lora: LoraSection, model: ModelSection, parallel: ParallelSection
) -> TransformerBlockSubmodules:
    """Return the layers of one pipeline stage for --transformer-impl."""
    num_layers = model.num_layers // parallel.pipeline_model_parallel_size
    if model.transformer_impl == "transformer_engine":
        return fused_block_spec(num_layers, model.qk_layernorm)
    adapters = lora_options(lora, "language_model")
    return block_spec(num_layers, AttnMaskType.arbitrary, model.qk_layernorm, adapters)


def build_language_model(
    config: ModelConfig, vocab_size: int, groups: ParallelGroups, *, untouched: bool = False
) -> GPTModel:
    """Build this rank's part of the language model.

    Args:
        vocab_size: rows of the embedding, padded to a multiple of the tensor-parallel size.
        untouched: allocate the weights and leave their memory alone. Such a model has names and
            shapes; it cannot be trained, because core marks its tensor-parallel weights where it
            draws them.
    """
    transformer_config = language_transformer_config(config)
    transformer_config.perform_initialization = not untouched
    model = GPTModel(
        config=transformer_config,
        transformer_layer_spec=language_block_spec(config.lora, config.model, config.parallel),
        vocab_size=vocab_size,
        max_sequence_length=config.model.max_position_embeddings,
        pre_process=groups.is_first_stage,
        post_process=groups.is_last_stage,
        share_embeddings_and_output_weights=not config.model.untie_embeddings_and_output_weights,
        position_embedding_type="mrope",
        rotary_base=config.rotary.rotary_base,
        # Media embeddings are placed before the sequence is scattered over tensor-parallel ranks.
        scatter_embedding_sequence_parallel=False,
        pg_collection=groups.pg,
    )
    model.rotary_pos_emb.inv_freq = scaled_frequencies(model.rotary_pos_emb.inv_freq, config.rotary)
    axes = channel_axes(
        mrope_sections(config.rotary, config.model), interleaved=config.rotary.mrope_interleaved
    )
    model.rotary_axes = axes.to(platform.device)
    if groups.is_first_stage:
        install_deepstack(model, config.family.embedding_levels - 1)
    return model


def embed_tokens(model: GPTModel, tokens: Tensor) -> Tensor:
    """Text embeddings [b, s, h] of token ids [b, s]; the whole sequence on every TP rank."""
    return model.embedding.word_embeddings(tokens)


def run_decoder(
    model: GPTModel,
    decoder_input: Tensor | None,
    position_ids: Tensor,
    attention_mask: Tensor | None,
    packed_seq_params: PackedSeqParams | None = None,
    inference_context: BaseInferenceContext | None = None,
) -> Tensor:
    """Run this stage's layers.

    Args:
        decoder_input: [s, b, h] on the first stage (whole local sequence), else None.
        position_ids: int64 [b, s] of this rank's shard, or [b, s, 3] for multimodal positions.
        attention_mask: see :func:`~megatron_longrl.parallel.attention.mask.attention_mask`.
        packed_seq_params: which ranks share the sequence, see
            :func:`~megatron_longrl.parallel.attention.module.cp_packed_seq_params`.
        inference_context: keeps keys and values of the tokens before ``decoder_input``;
            ``position_ids`` are then of the whole sequence so far.

    Returns:
        [s, b, h] hidden states of this stage (s / TP with sequence parallelism).
    """
    if position_ids.dim() == 2:
        position_ids = position_ids[:, :, None].expand(-1, -1, 3)
    # Not core's: that knows no interleaved channels, and would shard the positions once more.
    rotary = rotary_angles(position_ids, model.rotary_pos_emb.inv_freq, model.rotary_axes)
    if decoder_input is not None and model.config.sequence_parallel:
        decoder_input = tensor_parallel.scatter_to_sequence_parallel_region(
            decoder_input, group=model.pg_collection.tp
        )
    if (
        decoder_input is not None
        and torch.is_grad_enabled()
        and model.config.recompute_granularity == "full"
        and not decoder_input.requires_grad
    ):
        # Adapters within a layer that is computed again have gradients only if its input has.
        decoder_input.requires_grad_()
    return model.decoder(
        hidden_states=decoder_input,
        attention_mask=attention_mask,
        rotary_pos_emb=rotary,
        packed_seq_params=packed_seq_params,
        inference_context=inference_context,
    )


def hidden_for_logits(model: GPTModel, hidden: Tensor) -> Tensor:
    """Return hidden states whose gradient is summed over TP once, for any selection of them.

    Args:
        hidden: [s, b, h] (s / TP with sequence parallelism).

    Returns:
        [s, b, h], the whole local sequence.
    """
    group = model.pg_collection.tp
    if model.config.sequence_parallel:
        return tensor_parallel.gather_from_sequence_parallel_region(
            hidden, tensor_parallel_output_grad=True, group=group
        )
    return tensor_parallel.copy_to_tensor_model_parallel_region(hidden, group=group)


def output_weight(model: GPTModel) -> Tensor:
    """Return this tensor-parallel rank's rows [v / TP, h] of the output projection."""
    if model.share_embeddings_and_output_weights:
        return model.shared_embedding_or_output_weight()
    return model.output_layer.weight
