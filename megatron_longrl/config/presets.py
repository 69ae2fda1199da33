"""The algorithms: what ``--rl-algorithm`` sets, each part of which can be given on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from megatron_longrl.config.section import Names, is_name_in
from megatron_longrl.registry import Registry, instance_of

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
KLType = Literal["k1", "abs", "k2", "k3", "full"]
KLPlacement = Literal["loss", "reward"]


FlowSampler = Literal["flow_sde", "dance_sde", "cps"]


@dataclass(frozen=True)
class FlowPreset:
    """The parts of an algorithm for flow-matching models: defaults of the fields of
    :class:`~megatron_longrl.models.flow.section.FlowSection`."""

    sampler: FlowSampler = "flow_sde"
    noise_level: float = 0.7
    window: int = 0
    """Stochastic steps in a window that moves; 0 makes all steps stochastic."""
    trained_fraction: float = 1.0
    """The part of a sample's stochastic steps that is trained, drawn anew for each sample."""
    shared_first_noise: bool = False
    guard: bool = False
    """Ratios and weights of GRPO-Guard."""
    contrast: bool = False
    """DiffusionNFT: deterministic sampling, and a loss on the forward process."""


@dataclass(frozen=True)
class AlgorithmPreset:
    """An algorithm: its parts, which are the defaults of the fields with these names.

    Example: ``AlgorithmPreset("rloo", "pg", "seq-mean-token-sum-norm")``. The protocol of the parts
    is in :mod:`megatron_longrl.algorithms.registry`.
    """

    advantage: str
    """Name of the advantage estimator, which declares its further needs."""
    policy_loss: str
    """The name of the policy loss."""
    loss_aggregation: Aggregation
    grpo_clamp_eps_lower: float = 0.2
    grpo_clamp_eps_upper: float = 0.2
    dual_clip: float = 0.0
    grpo_kl_beta: float = 0.0
    """Above 0 the algorithm needs a reference model."""
    kl_type: KLType = "k3"
    kl_placement: KLPlacement = "loss"
    """``reward``: the algorithm needs per-token rewards."""
    dynamic_sampling: bool = False
    overlong_shaping: bool = False
    extra_generations: tuple[str, ...] = ()
    """Names of the extra generations that the algorithm needs, in addition to those of its
    estimator."""
    flow: FlowPreset | None = None
    """None for an algorithm of language models."""


def _problem(name: str, value: object) -> str | None:
    """The reason why an object is no algorithm. Whether its parts exist, and its numbers are in
    range, the fields check of which they are the defaults."""
    if not isinstance(value, AlgorithmPreset):
        return instance_of(AlgorithmPreset)(name, value)
    problems = [*_wrong_fields(value), *(_wrong_fields(value.flow) if value.flow else ())]
    return next(iter(problems), None)


def _wrong_fields(preset: AlgorithmPreset | FlowPreset) -> Iterator[str]:
    """A line for each field whose value has another type."""
    for name, kind in get_type_hints(type(preset)).items():
        value = getattr(preset, name)
        if value is preset.__dataclass_fields__[name].default:
            continue
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            expected = error.errors(include_url=False)[0]["msg"]
            yield f"{name} = {value!r}: {expected.replace('Input should be', 'expected')}"


ALGORITHMS: Registry[AlgorithmPreset] = Registry(
    "algorithm",
    "megatron_longrl.rl_algorithms",
    {
        # https://arxiv.org/abs/2402.03300, with Long-RL's bounds (https://arxiv.org/abs/2507.07966).
        "grpo": AlgorithmPreset("grpo", "clip", "token-mean", 0.2, 0.3, 3.0),
        # https://arxiv.org/abs/2503.14476
        "dapo": AlgorithmPreset(
            "grpo", "clip", "token-mean", 0.2, 0.28, dynamic_sampling=True, overlong_shaping=True
        ),
        # https://arxiv.org/abs/2503.20783
        "dr_grpo": AlgorithmPreset("dr_grpo", "clip", "seq-mean-token-sum-norm"),
        # Williams, Machine Learning 8 (1992) 229
        "reinforce": AlgorithmPreset("reinforce", "pg", "token-mean"),
        # https://arxiv.org/abs/2501.03262
        "reinforce++": AlgorithmPreset(
            "reinforce_plus_plus",
            "clip",
            "token-mean",
            grpo_kl_beta=1e-3,
            kl_type="k1",
            kl_placement="reward",
        ),
        "reinforce++_baseline": AlgorithmPreset(
            "reinforce_plus_plus_baseline", "clip", "token-mean", grpo_kl_beta=1e-3, kl_type="k2"
        ),
        # https://arxiv.org/abs/2402.14740
        "rloo": AlgorithmPreset("rloo", "pg", "seq-mean-token-sum-norm"),
        # https://arxiv.org/abs/2310.10505
        "remax": AlgorithmPreset("remax", "pg", "seq-mean-token-sum-norm"),
        # https://arxiv.org/abs/2507.18071
        "gspo": AlgorithmPreset("grpo", "gspo", "seq-mean-token-mean", 3e-4, 4e-4),
        # https://arxiv.org/abs/2506.13585: no lower bound.
        "cispo": AlgorithmPreset("grpo", "cispo", "token-mean", 1.0, 4.0),
        # https://arxiv.org/abs/2504.02546
        "gpg": AlgorithmPreset("gpg", "pg", "token-mean"),
        # https://arxiv.org/abs/2503.19595
        "grpo_passk": AlgorithmPreset("grpo_passk", "clip", "token-mean", 0.2, 0.3, 3.0),
        # https://arxiv.org/abs/1707.06347
        "ppo": AlgorithmPreset("gae", "clip", "token-mean"),
        # https://arxiv.org/abs/2505.05470
        "flow_grpo": AlgorithmPreset(
            "grpo_batch_std", "clip", "token-mean", 1e-4, 1e-4, flow=FlowPreset()
        ),
        # https://arxiv.org/abs/2505.07818
        "dance_grpo": AlgorithmPreset(
            *("grpo", "clip", "token-mean", 1e-4, 1e-4),
            flow=FlowPreset("dance_sde", 0.3, trained_fraction=0.6, shared_first_noise=True),
        ),
        # https://arxiv.org/abs/2507.21802
        "mix_grpo": AlgorithmPreset(
            "grpo", "clip", "token-mean", 1e-4, 1e-4, flow=FlowPreset(window=4)
        ),
        # https://arxiv.org/abs/2510.22319
        "grpo_guard": AlgorithmPreset(
            "grpo_batch_std", "clip", "token-mean", 2e-6, 2e-6, flow=FlowPreset(guard=True)
        ),
        # https://arxiv.org/abs/2509.16117
        "diffusion_nft": AlgorithmPreset(
            "grpo_batch_std", "clip", "token-mean", flow=FlowPreset(contrast=True)
        ),
    },
    problem=_problem,
)
"""The algorithms by ``--rl-algorithm``."""


def algorithm_names(*, flow: bool) -> tuple[str, ...]:
    """The algorithms for flow-matching models, or those for language models."""
    presets = ALGORITHMS.usable()
    return tuple(name for name, preset in presets.items() if (preset.flow is not None) is flow)


AlgorithmName = Annotated[str, Names(ALGORITHMS.names), is_name_in(ALGORITHMS)]


def from_algorithm(part: str) -> Callable[[dict[str, Any]], Any]:
    """The default of a field: the values that the algorithm sets."""

    def default(values: dict[str, Any]) -> Any:
        return getattr(ALGORITHMS.find(values["rl_algorithm"]), part)

    return default
