"""Fields of the optimizer, the schedule and what is trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field

from megatron_longrl.config.section import (
    CountInt,
    Fraction,
    PositiveFloat,
    PositiveInt,
    Section,
    WeightFloat,
)


def _all_iterations(values: dict[str, Any]) -> int:
    return max(1, values["train_iters"])


class TrainingSection(Section):
    """training: batches, precision, optimizer, schedule, what is frozen"""

    micro_batch_size: PositiveInt = 1
    """Rows of one forward pass on one rank. A row is a prompt and the responses that share it."""

    global_batch_size: PositiveInt | None = None
    """Samples of one optimizer step over all ranks. By default micro batch size x data-parallel
    size for SFT; for RL it is prompts per step x group size and need not be given."""

    train_iters: CountInt = 0
    """Optimizer steps of the whole run, those of a resumed run included. RL counts its steps. By
    default as many as --train-epochs takes."""

    train_epochs: PositiveFloat = 1.0
    """Passes over the training data, where --train-iters is not given."""

    seq_length: PositiveInt
    """Longest row in tokens: a prompt with its video and the responses that share it. A group whose
    responses do not all fit takes several rows. By default what the longest row of the data
    needs."""

    seq_length_from_data: bool = False
    """Set --seq-length to what the longest row of the training data needs; on where --seq-length is
    not given."""

    use_sequence_packing: bool = Field(
        default=False,
        validation_alias=AliasChoices("use_sequence_packing", "rl_use_sequence_packing"),
    )
    """Fill rows up to --seq-length with samples that do not see each other."""

    lr: WeightFloat = 0.0
    """Peak learning rate; by default 1e-5 for SFT and 1e-6 for RL."""

    bf16: bool = False
    """Train in bfloat16 with fp32 main weights; without it everything is fp32."""

    min_lr: WeightFloat = 0.0
    """Learning rate at the end of the decay."""

    lr_decay_style: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the decay from --lr to --min-lr."""

    lr_decay_iters: PositiveInt = Field(default_factory=_all_iterations)
    """Steps until the decay ends; by default all of them."""

    lr_warmup_iters: CountInt = 0
    """Steps of linear warmup from 0."""

    lr_warmup_fraction: Fraction | None = None
    """Warmup as a fraction of the decay steps, instead of --lr-warmup-iters."""

    weight_decay: WeightFloat = 0.0
    """AdamW weight decay (not applied to biases and norms)."""

    adam_beta1: Fraction = 0.9
    """Decay of Adam's first moment."""

    adam_beta2: Fraction = 0.95
    """Decay of Adam's second moment."""

    adam_eps: PositiveFloat = 1e-8
    """Adam's epsilon."""

    clip_grad: WeightFloat = 1.0
    """Gradients are scaled down to this global norm; 0 switches clipping off."""

    seed: CountInt = 1234
    """Seed of initial weights, data order and sampling."""

    recompute_granularity: Literal["full", "selective"] | None = None
    """Recompute activations in the backward pass: full (every layer) or selective (attention)."""

    freeze_vision_tower: bool = False
    """Do not train the vision tower."""

    freeze_projector: bool = False
    """Do not train the projector."""

    freeze_language_model: bool = False
    """Do not train the language model."""
