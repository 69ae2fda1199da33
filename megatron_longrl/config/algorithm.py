"""Fields of the reinforcement-learning algorithm: what rewards become."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_longrl.config.bundles import (
    Advantage,
    Aggregation,
    Algorithm,
    KLPlacement,
    KLType,
    PolicyLoss,
    from_bundle,
)
from megatron_longrl.config.section import (
    CountInt,
    FiniteFloat,
    Fraction,
    PositiveFloat,
    PositiveInt,
    Section,
    WeightFloat,
)


class AlgorithmSection(Section):
    """algorithm: advantages, policy loss, KL, filters"""

    rl_algorithm: Algorithm = "grpo"
    """Sets the default of every field in this group that says "as the algorithm"; see
    docs/algorithms.md."""

    advantage: Advantage = Field(default_factory=from_bundle("advantage"))
    """How rewards become advantages; as the algorithm."""

    advantage_epsilon: PositiveFloat = 1e-6
    """Added to a standard deviation of rewards or advantages before it divides."""

    policy_loss: PolicyLoss = Field(default_factory=from_bundle("policy_loss"))
    """clip: PPO's surrogate; gspo: of the whole response's ratio; cispo: bounded weights of the
    log-likelihood; pg: the log-likelihood alone; as the algorithm."""

    loss_aggregation: Aggregation = Field(default_factory=from_bundle("loss_aggregation"))
    """Mean over all response tokens (token), mean over responses of their mean (sequence), or mean
    over responses of their sum divided by --rollout-max-tokens (sequence-sum-norm); as the
    algorithm."""

    grpo_clamp_eps_lower: WeightFloat = Field(default_factory=from_bundle("grpo_clamp_eps_lower"))
    """The policy ratio is clipped below at 1 minus this; as the algorithm."""

    grpo_clamp_eps_upper: WeightFloat = Field(default_factory=from_bundle("grpo_clamp_eps_upper"))
    """The policy ratio is clipped above at 1 plus this; as the algorithm."""

    dual_clip: WeightFloat = Field(default_factory=from_bundle("dual_clip"))
    """Bound of the clipped loss for negative advantages, as a multiple of the advantage, above 1; 0
    is none; as the algorithm."""

    grpo_entropy_term_weight: WeightFloat = 0.0
    """Weight of the entropy bonus."""

    grpo_kl_beta: WeightFloat = Field(default_factory=from_bundle("grpo_kl_beta"))
    """Weight of the KL term to the reference model; 0 needs no reference model; as the
    algorithm."""

    kl_type: KLType = Field(default_factory=from_bundle("kl_type"))
    """Estimator of the KL divergence, or full: the sum over the vocabulary; as the algorithm."""

    kl_placement: KLPlacement = Field(default_factory=from_bundle("kl_placement"))
    """The KL term is added to the loss, or taken from the reward of every token; as the
    algorithm."""

    kl_target: PositiveFloat | None = None
    """Adapt --grpo-kl-beta so that the divergence comes near this value; by default it is fixed."""

    kl_horizon: PositiveFloat = 10000.0
    """Responses after which an adaptive weight has followed a constant error."""

    ref_reset_interval: PositiveInt | None = None
    """Every so many steps the policy becomes the reference; by default never."""

    rollout_correction: Literal["off", "token", "sequence", "icepop", "ratio"] = "off"
    """Weigh tokens by how likely they are to the trainer, compared with the engine that sampled
    them: truncated per token, truncated per response, or tokens outside the bounds left out; or
    let the policy loss's ratio be to the engine's probabilities, so that its bounds hold for what
    older weights have sampled, too."""

    rollout_correction_cap: PositiveFloat = 2.0
    """Largest weight of token and sequence, and upper bound of icepop."""

    rollout_correction_floor: WeightFloat = 0.5
    """Lower bound of icepop."""

    dynamic_sampling: bool = Field(default_factory=from_bundle("dynamic_sampling"))
    """Replace groups whose --filter-metric says nothing (all right, all wrong) by groups of other
    prompts; as the algorithm."""

    dynamic_sampling_max_tries: PositiveInt = 20
    """Rounds of generation per step; then the step runs on the groups that are left."""

    filter_metric: Literal["accuracy", "reward"] = "accuracy"
    """Dynamic sampling keeps groups by the mean of this."""

    filter_low: FiniteFloat = 0.01
    """A group is kept when its mean is above this."""

    filter_high: FiniteFloat = 0.99
    """A group is kept when its mean is below this."""

    overlong_shaping: bool = Field(default_factory=from_bundle("overlong_shaping"))
    """Take from the reward of responses that end within the last --overlong-buffer tokens, linearly
    up to --overlong-penalty at --rollout-max-tokens; as the algorithm."""

    overlong_buffer: PositiveInt | None = None
    """Tokens before --rollout-max-tokens where the penalty begins; by default a fifth of it."""

    overlong_penalty: WeightFloat = 1.0
    """Largest penalty for length."""

    mask_overlong: bool = False
    """Do not train on responses that were cut at --rollout-max-tokens."""

    gae_gamma: Fraction = 1.0
    """Discount per token of gae and reinforce_plus_plus."""

    gae_lambda: Fraction = 0.95
    """Exponential weight of gae."""

    critic_lr: WeightFloat | None = None
    """Peak learning rate of gae's critic; by default ten times --lr."""

    critic_iterations: PositiveInt = 4
    """How often gae's critic is trained on the rollouts of a step (--grpo-iterations is for the
    policy): with one it lags behind, see docs/appendix_moving_cups.md."""

    critic_warmup_steps: CountInt = 0
    """First steps that train only the critic."""

    critic_value_clip: PositiveFloat | None = 0.2
    """A value may move by this in one batch of rollouts; none: no bound."""

    shuffled_frames_bonus: WeightFloat = 0.0
    """T-GRPO: added to the reward of right answers when a group does better on its video than on
    the video with its frames shuffled; 0 generates no such responses."""

    shuffled_frames_ratio: Fraction = 1.0
    """A group does better when its accuracy is at least this part of that on shuffled frames."""
