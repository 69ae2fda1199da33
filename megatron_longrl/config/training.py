"""Fields of the optimizer, the schedule and the trained parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from megatron_longrl.config.section import (
    CountInt,
    Fraction,
    KnownTo,
    PositiveFloat,
    PositiveInt,
    Programs,
    Section,
    Unit,
    WeightFloat,
)

if TYPE_CHECKING:
    import torch


def _all_iterations(values: dict[str, Any]) -> int:
    return max(1, values["train_iters"])


class TrainingSection(Section):
    """training: batches, precision, optimizer, schedule, what is frozen"""

    programs: ClassVar[Programs] = ("sft", "rl")

    micro_batch_size: Annotated[PositiveInt, Unit("sequences")] = 1
    """Sequences of one forward pass on one rank. A sequence is a prompt with the responses that
    share it."""

    global_batch_size: Annotated[PositiveInt | None, Unit("samples")] = None
    """Samples of one optimizer step over all ranks. By default, for SFT, --micro-batch-size times
    the number of model replicas; for RL all responses of a step, which a smaller number cuts into
    several optimizer steps."""

    train_iters: Annotated[CountInt, Unit("steps")] = 0
    """Steps of the whole run, those of a resumed run included: optimizer steps for SFT, RL steps
    for RL. By default as many as --train-epochs takes."""

    train_epochs: Annotated[PositiveFloat, Unit("epochs")] = 1.0
    """Passes over the training data, where --train-iters is not given."""

    seq_length: Annotated[PositiveInt, Unit("tokens"), KnownTo("sft", "rl", "evaluate")]
    """Length of the longest sequence, which is a prompt with its videos and the responses that
    share it. A group whose responses do not all fit takes several sequences. By default the length
    that the longest data row needs, at most --max-position-embeddings."""

    seq_length_from_data: Annotated[bool, KnownTo("sft", "rl", "evaluate")] = False
    """Set --seq-length to the length that the longest data row needs (in evaluation, of --data).
    By default on where --seq-length is not given, else off."""

    use_sequence_packing: bool = Field(
        default=False,
        validation_alias=AliasChoices("use_sequence_packing", "rl_use_sequence_packing"),
    )
    """Pack samples, which do not see each other, into sequences of up to --seq-length tokens."""

    lr: WeightFloat = 0.0
    """Peak learning rate; by default 1e-5 for SFT and 1e-6 for RL."""

    bf16: Annotated[bool, KnownTo("sft", "rl", "evaluate")] = False
    """Compute in bfloat16 and keep main weights in fp32. Without it everything is fp32."""

    min_lr: WeightFloat = 0.0
    """Learning rate at the end of the decay."""

    lr_decay_style: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the decay from --lr to --min-lr."""

    lr_decay_iters: Annotated[PositiveInt, Unit("steps")] = Field(default_factory=_all_iterations)
    """Steps until the decay ends; by default --train-iters."""

    lr_warmup_iters: Annotated[CountInt, Unit("steps")] = 0
    """Steps in which the learning rate rises linearly from 0."""

    lr_warmup_fraction: Fraction | None = None
    """The same as a share of --lr-decay-iters; by default --lr-warmup-iters counts."""

    weight_decay: WeightFloat = 0.0
    """Weight decay of AdamW; biases and norms have none."""

    adam_beta1: Fraction = 0.9
    """Decay of Adam's first moment."""

    adam_beta2: Fraction = 0.95
    """Decay of Adam's second moment."""

    adam_eps: PositiveFloat = 1e-8
    """Added to the root of Adam's second moment before it divides."""

    clip_grad: WeightFloat = 1.0
    """Largest norm of the gradient of all weights together, to which a larger one is scaled down; 0
    switches this off."""

    seed: Annotated[CountInt, KnownTo("sft", "rl", "evaluate")] = 1234
    """Seed of initial weights, order of the data, and sampling."""

    recompute_granularity: Literal["full", "selective"] | None = None
    """Compute activations again in the backward pass, which saves memory: full, every layer;
    selective, the attention only. By default none are."""

    freeze_language_model: bool = False
    """Do not train the language model."""

    @property
    def params_dtype(self) -> torch.dtype:
        """Type of the weights that the forward pass uses."""
        import torch

        return torch.bfloat16 if self.bf16 else torch.float32

    def samples_per_step(self, replicas: int) -> int:
        """Rows of one optimizer step of SFT.

        Args:
            replicas: number of model replicas.
        """
        return self.global_batch_size or self.micro_batch_size * replicas

    @property
    def lr_warmup_steps(self) -> int:
        """Steps of warmup, given by --lr-warmup-iters or --lr-warmup-fraction."""
        if self.lr_warmup_fraction is not None:
            return int(self.lr_warmup_fraction * self.lr_decay_iters)
        return self.lr_warmup_iters
