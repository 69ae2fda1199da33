"""Fields of the reinforcement-learning algorithm: what rewards become."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from megatron_longrl.config.algorithm_parts import ADVANTAGES, AdvantageName, PolicyLossName
from megatron_longrl.config.presets import (
    Aggregation,
    AlgorithmName,
    KLPlacement,
    KLType,
    from_algorithm,
)
from megatron_longrl.config.section import (
    CountInt,
    FiniteFloat,
    Fraction,
    PositiveFloat,
    PositiveInt,
    Programs,
    Section,
    Unit,
    WeightFloat,
)


class AlgorithmSection(Section):
    """algorithm: advantages, policy loss, KL, filters

    The algorithm that --rl-algorithm names sets the defaults of its parts, each of which can be
    given on its own.
    """

    programs: ClassVar[Programs] = ("rl",)

    rl_algorithm: AlgorithmName = "grpo"
    """Algorithm, whose values are the defaults of the fields that follow; see
    docs/algorithms.md."""

    advantage: AdvantageName = Field(default_factory=from_algorithm("advantage"))
    """Estimator of the advantages; by default the algorithm's."""

    advantage_epsilon: PositiveFloat = 1e-6
    """Added to a standard deviation of rewards or advantages before it divides."""

    policy_loss: PolicyLossName = Field(default_factory=from_algorithm("policy_loss"))
    """Loss of the policy. clip: PPO's clipped surrogate; gspo: the same with one ratio for the
    whole response; cispo: the log-likelihood with bounded weights; pg: the log-likelihood alone; by
    default the algorithm's."""

    loss_aggregation: Aggregation = Field(default_factory=from_algorithm("loss_aggregation"))
    """Aggregation of the loss of tokens: mean over all response tokens (token-mean), mean of the
    means of the responses (seq-mean-token-mean), or mean of the sums of the responses divided by
    --rollout-max-tokens (seq-mean-token-sum-norm); by default the algorithm's."""

    grpo_clamp_eps_lower: WeightFloat = Field(
        default_factory=from_algorithm("grpo_clamp_eps_lower")
    )
    """The policy ratio is clipped below at 1 minus this; by default the algorithm's."""

    grpo_clamp_eps_upper: WeightFloat = Field(
        default_factory=from_algorithm("grpo_clamp_eps_upper")
    )
    """The policy ratio is clipped above at 1 plus this; by default the algorithm's."""

    dual_clip: WeightFloat = Field(default_factory=from_algorithm("dual_clip"))
    """Largest ratio that counts for a negative advantage, above 1; 0 sets no limit; by default the
    algorithm's."""

    grpo_entropy_term_weight: WeightFloat = 0.0
    """Weight of the entropy bonus in the loss."""

    grpo_kl_beta: WeightFloat = Field(default_factory=from_algorithm("grpo_kl_beta"))
    """Weight of the KL term to the reference model; 0 needs no reference model; by default the
    algorithm's."""

    kl_type: KLType = Field(default_factory=from_algorithm("kl_type"))
    """Estimator of the KL divergence from sampled tokens (k1, abs, k2, k3), or full: the exact sum
    over the vocabulary; by default the algorithm's."""

    kl_placement: KLPlacement = Field(default_factory=from_algorithm("kl_placement"))
    """Place of the KL term: loss adds it to the loss, reward subtracts it from the reward of every
    token; by default the algorithm's."""

    kl_target: Annotated[PositiveFloat | None, Unit("nats per token")] = None
    """Divergence towards which --grpo-kl-beta is adapted after every step; by default it is
    fixed."""

    kl_horizon: Annotated[PositiveFloat, Unit("responses")] = 10000.0
    """Responses after which an adaptive --grpo-kl-beta has followed a constant error."""

    ref_reset_interval: Annotated[PositiveInt | None, Unit("steps")] = None
    """Steps after which the policy becomes the reference, again and again; by default never."""

    rollout_correction: Literal["off", "token", "sequence", "icepop", "ratio"] = "off"
    """Correction of the loss for tokens that the engine sampled with other probabilities than the
    trainer's. token weights each token by the ratio of the two probabilities, up to a threshold;
    sequence does the same with the ratio of whole responses; icepop leaves out tokens whose ratio
    is out of bounds; ratio uses the engine's probabilities in the ratio of the policy loss, so that
    its bounds also hold for tokens that older weights have sampled."""

    rollout_is_threshold: PositiveFloat = 2.0
    """Largest weight of token and sequence, and upper bound of icepop."""

    rollout_is_threshold_lower: WeightFloat = 0.5
    """Lower bound of icepop."""

    dynamic_sampling: bool = Field(default_factory=from_algorithm("dynamic_sampling"))
    """Replace groups that teach nothing (all right, all wrong) by --filter-metric with groups of
    other prompts; by default the algorithm's."""

    dynamic_sampling_max_tries: Annotated[PositiveInt, Unit("rounds")] = 20
    """Most rounds of generation in a step; after them it trains on the groups that it has."""

    filter_metric: Literal["accuracy", "reward"] = "accuracy"
    """Quantity by whose mean over the responses dynamic sampling judges a group."""

    filter_low: FiniteFloat = 0.01
    """A group is kept when its mean is above this."""

    filter_high: FiniteFloat = 0.99
    """A group is kept when its mean is below this."""

    overlong_shaping: bool = Field(default_factory=from_algorithm("overlong_shaping"))
    """Take from the reward of responses that end within the last --overlong-buffer tokens before
    --rollout-max-tokens, linearly up to --overlong-penalty; by default the algorithm's."""

    overlong_buffer: Annotated[PositiveInt | None, Unit("tokens")] = None
    """Tokens before --rollout-max-tokens at which the penalty begins; by default a fifth of
    --rollout-max-tokens."""

    overlong_penalty: WeightFloat = 1.0
    """Penalty of a response of --rollout-max-tokens, in units of the reward."""

    mask_overlong: bool = False
    """Do not train on responses that were cut at --rollout-max-tokens."""

    gae_gamma: Fraction = 1.0
    """Discount per token, of the advantages gae and reinforce_plus_plus."""

    gae_lambda: Fraction = 0.95
    """Exponential weight of the advantage gae: 1 takes whole returns, 0 single steps."""

    critic_lr: WeightFloat | None = None
    """Peak learning rate of gae's critic; by default ten times --lr."""

    critic_iterations: Annotated[PositiveInt, Unit("passes")] = 4
    """Number of times that gae's critic is trained on the rollouts of a step (--grpo-iterations is
    for the policy). With one the critic lags behind, see docs/appendix_moving_cups.md."""

    critic_warmup_steps: Annotated[CountInt, Unit("steps")] = 0
    """Steps at the start that train only the critic."""

    critic_value_clip: PositiveFloat | None = 0.2
    """Distance by which a value may move in one batch of rollouts, in units of the reward; none
    sets no limit."""

    shuffled_frames_bonus: WeightFloat = 0.0
    """T-GRPO: added to the reward of right answers where a group does better on its video than on
    the video with its frames shuffled; 0 generates no such responses."""

    shuffled_frames_ratio: Fraction = 1.0
    """A group does better when its accuracy is above 0 and at least this part of the accuracy on
    shuffled frames."""

    @property
    def needs_critic(self) -> bool:
        """Whether the advantage estimator needs the values of a critic."""
        return ADVANTAGES.find(self.advantage).needs_critic

    @property
    def rewards_tokens(self) -> bool:
        """Whether tokens have rewards in addition to the reward of their response."""
        return self.grpo_kl_beta > 0 and self.kl_placement == "reward"
