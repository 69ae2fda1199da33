"""The fields that flow-matching models share: how they sample, and what of it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from megatron_longrl.config.family import FamilySection
from megatron_longrl.config.presets import FlowSampler
from megatron_longrl.config.section import (
    Architecture,
    CountInt,
    Fraction,
    KnownTo,
    Metavar,
    PositiveFloat,
    PositiveInt,
    Unit,
)
from megatron_longrl.config.sizes import WIDEST


class FlowSection(FamilySection):
    """flow: how a flow-matching model samples, and which steps are trained

    A field that says "as the algorithm" follows --rl-algorithm.
    """

    diffusers_folder: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder, as diffusers saves pipelines, with the autoencoder, text encoders and tokenizers of
    the model, which are frozen."""

    latent_channels: Annotated[PositiveInt, Unit("channels"), Architecture(most=WIDEST)] = 16
    """Channels of the latents that the transformer reads and predicts."""

    latent_patch_size: Annotated[PositiveInt, Unit("latents"), Architecture(most=WIDEST)] = 2
    """Side of the square of latents that becomes one token."""

    picture_height: Annotated[PositiveInt, Unit("pixels")] = 512
    """Height of the pictures that are sampled or trained on."""

    picture_width: Annotated[PositiveInt, Unit("pixels")] = 512
    """Width of these pictures."""

    text_max_tokens: Annotated[PositiveInt, Unit("tokens")] = 256
    """Longest prompt of the last text encoder; a longer one is cut, as diffusers does."""

    noise_schedule: Literal["flow_match_euler", "linear"] = "flow_match_euler"
    """Noise levels of sampling: flow_match_euler has those of diffusers' scheduler of this name;
    linear has evenly spaced ones, shifted."""

    schedule_shift: PositiveFloat = 3.0
    """Factor by which noise levels, of sampling and of pre-training, are moved towards 1; 1 does
    not change them."""

    sampling_steps: Annotated[PositiveInt, Unit("steps"), KnownTo("rl")] = 10
    """Steps of sampling in training."""

    eval_sampling_steps: Annotated[PositiveInt, Unit("steps")] = 40
    """Steps of sampling in validation, all deterministic."""

    guidance_scale: PositiveFloat = 1.0
    """Classifier-free guidance, in sampling and in training; 1 has none."""

    flow_sampler: Annotated[FlowSampler | None, KnownTo("rl")] = None
    """Stochastic steps: flow_sde (Flow-GRPO), dance_sde (DanceGRPO) or cps
    (coefficient-preserving); as the algorithm."""

    noise_level: Annotated[PositiveFloat | None, KnownTo("rl")] = None
    """Noise of stochastic steps: the factor of flow_sde, the constant of dance_sde, or the part of
    cps, from 0 to 1; as the algorithm."""

    logprob_reduction: Annotated[Literal["mean", "sum"], KnownTo("rl")] = "mean"
    """The log-probability of a step is the mean over the elements of the latents, or their sum.
    The mean goes with clipping ranges such as 1e-4 (--grpo-clamp-eps-lower and -upper), the sum
    with 0.2."""

    stochastic_window: Annotated[CountInt | None, Unit("steps"), KnownTo("rl")] = None
    """Stochastic steps, and the only ones that are trained, of a window that moves from the
    noisiest step on; 0 makes all steps but the last one stochastic; as the algorithm."""

    window_interval: Annotated[PositiveInt, Unit("steps"), KnownTo("rl")] = 25
    """RL steps after which the window moves."""

    window_stride: Annotated[PositiveInt, Unit("steps"), KnownTo("rl")] = 1
    """Steps of sampling that the window moves."""

    trained_steps_fraction: Annotated[Fraction | None, KnownTo("rl")] = None
    """The part of a sample's stochastic steps that is trained, drawn for each sample; as the
    algorithm."""

    shared_first_noise: Annotated[bool | None, KnownTo("rl")] = None
    """All samples of a prompt begin with the same noise; as the algorithm."""

    advantage_limit: Annotated[PositiveFloat, KnownTo("rl")] = 5.0
    """Largest size of an advantage."""

    nft_beta: Annotated[PositiveFloat, KnownTo("rl")] = 1.0
    """Distance of DiffusionNFT's implicit policies from the old one, in units of the change."""

    nft_noise_levels: Annotated[PositiveInt, Unit("levels"), KnownTo("rl")] = 3
    """Noise levels at which DiffusionNFT trains on each sample."""

    caption_dropout: Annotated[Fraction, KnownTo("sft")] = 0.1
    """The part of the captions that pre-training replaces by the empty one, for guidance."""

    ema_decay: Annotated[Fraction | None, KnownTo("sft", "rl")] = None
    """The part that an exponential moving average of the trained weights keeps in an update;
    validation takes the average, and checkpoints hold it beside the weights. By default there is
    none."""

    ema_interval: Annotated[PositiveInt, Unit("steps"), KnownTo("sft", "rl")] = 1
    """Steps from one update of the average to the next."""

    use_ema: Annotated[bool, KnownTo("evaluate", "generate")] = False
    """Draw with the averages that the run has kept (--ema-decay)."""

    @property
    def frames(self) -> int | None:
        """Frames of films; None where pictures are drawn."""
        return None

    @property
    def fps(self) -> int:
        """Frames per second of films."""
        return 1

    @property
    def drawn(self) -> str:
        """The pictures or films of a run, for messages."""
        size = f"{self.picture_width} x {self.picture_height}"
        if self.frames is None:
            return f"pictures of {size}"
        return f"films of {self.frames} frames of {size}"

    @property
    def most_tokens_a_side(self) -> int | None:
        """The rows, and columns, of tokens whose positions the model has in a table; None where it
        computes positions, of any number."""
        return None
