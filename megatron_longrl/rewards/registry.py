"""The rewards by name: those of the package, and those that a plugin registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.registry import Registry, instance_of
from megatron_longrl.rewards.accuracy import kind_of
from megatron_longrl.rewards.choice import choice_reward
from megatron_longrl.rewards.exact import exact_reward
from megatron_longrl.rewards.format import format_reward
from megatron_longrl.rewards.mathematics import math_reward
from megatron_longrl.rewards.numeric import numeric_reward
from megatron_longrl.rewards.options import options_of
from megatron_longrl.rewards.ordering import ordering_exact_reward, ordering_reward
from megatron_longrl.rewards.picture_models import (
    aesthetic,
    clip_score,
    hps,
    pick_score,
    prepare_model,
)
from megatron_longrl.rewards.pictures import jpeg_compressibility
from megatron_longrl.rewards.rendered import PROPERTIES, property_reward, rendered_reward
from megatron_longrl.rewards.result import RewardError, is_finite
from megatron_longrl.rewards.rouge import KINDS as ROUGE_KINDS
from megatron_longrl.rewards.rouge import rouge_reward
from megatron_longrl.rewards.temporal import temporal_iou_reward
from megatron_longrl.rewards.written_text import ocr, prepare_reader

Reads = Literal["text", "picture"]
"""The kinds of output of a policy; a reward looks at one of them."""


@dataclass(frozen=True)
class Reward:
    """A reward that ``--rewards`` names."""

    score: Callable[..., float]
    """The function of a response, a :class:`~megatron_longrl.experience.reward_input.RewardInput`,
    that gives a finite number; raises :class:`~megatron_longrl.rewards.result.RewardError` with a
    line where it has none."""
    in_worker: bool = True
    """Whether it runs in a separate process, with a deadline. Without, it must take no time."""
    library: str | None = None
    """The module that this process imports before the first call, which may take long."""
    prepare: Callable[..., object] | None = None
    """A function of the ``settings`` that this process calls before the first call, because it
    takes long, as loading a model does; raises
    :class:`~megatron_longrl.rewards.result.RewardError`."""
    free_form: bool = True
    """Whether it reads the whole response, and not the answer that is marked in it."""
    settings: tuple[str, ...] = ()
    """The fields of the section of rewards whose values the function gets after the response."""
    needs: tuple[str, ...] = ()
    """The ``settings`` without which the reward cannot be computed."""
    reads: Reads = "text"
    """The kind of response that it scores."""

    def compute(self, sample: RewardInput, settings: Mapping[str, Any]) -> float:
        """The score of a response.

        Args:
            settings: values of the fields of the section of rewards, see :func:`setting_names`.

        Raises:
            RewardError: there is none.
        """
        score = self.score(sample, *(settings[name] for name in self.settings))
        try:
            number = float(score)
        except (TypeError, ValueError):
            raise RewardError(f"gave {type(score).__name__}, no number") from None
        if not is_finite(number):
            raise RewardError(f"gave {number}, which is not finite")
        return number


def _marked(score: Callable[[RewardInput], float]) -> Reward:
    """A quick reward that compares the marked answer with the reference."""
    return Reward(score, in_worker=False, free_form=False)


def _rouge(kind: str) -> Reward:
    return Reward(
        lambda sample: rouge_reward(sample.response, sample.answer, kind),
        library="rouge_score.rouge_scorer",
    )


def _property(name: str) -> Reward:
    return Reward(lambda sample: property_reward(sample, name), in_worker=False, reads="picture")


def _of_model(score: Callable[..., float], *needs: str) -> Reward:
    """A reward of a model that a separate process loads."""
    return Reward(
        score,
        library="transformers",
        prepare=prepare_model,
        settings=(*needs, "reward_model_device"),
        needs=needs,
        reads="picture",
    )


ACCURACY, JUDGE = "accuracy", "judge"
"""Two more that ``--rewards`` may name: the reward that a row asks for, and the judge."""

TAKEN = (ACCURACY, JUDGE, "mean")
"""Names that no reward may have: the mean of all is reported as ``reward/mean``."""


def _problem(name: str, value: object) -> str | None:
    """The reason why an object is no reward of a name."""
    if name in TAKEN:
        return "this name means something else: give yours another one"
    return instance_of(Reward)(name, value)


REWARDS: Registry[Reward] = Registry(
    "reward",
    "megatron_longrl.rewards",
    {
        "format": Reward(lambda sample: format_reward(sample.response), in_worker=False),
        "choice": _marked(lambda s: choice_reward(s.response, s.answer, options_of(s))),
        "exact": _marked(lambda sample: exact_reward(sample.response, sample.answer)),
        "numeric": Reward(
            lambda sample, tolerance: numeric_reward(sample.response, sample.answer, tolerance),
            in_worker=False,
            free_form=False,
            settings=("reward_tolerance",),
        ),
        "math": Reward(
            lambda sample: math_reward(sample.response, sample.answer),
            library="math_verify",
            free_form=False,
        ),
        "temporal_iou": _marked(lambda s: temporal_iou_reward(s.response, s.answer)),
        "ordering": _marked(lambda s: ordering_reward(s.response, s.answer)),
        "ordering_exact": _marked(lambda s: ordering_exact_reward(s.response, s.answer)),
        "jpeg_compressibility": Reward(jpeg_compressibility, reads="picture"),
        "ocr": Reward(ocr, library="rapidocr", prepare=prepare_reader, reads="picture"),
        "clip_score": _of_model(clip_score, "clip_model"),
        "pick_score": _of_model(pick_score, "pick_score_model"),
        "hps": _of_model(hps, "hps_model"),
        "aesthetic": _of_model(aesthetic, "clip_model", "aesthetic_head"),
        "rendered": Reward(rendered_reward, in_worker=False, reads="picture"),
        **{name: _property(name) for name in PROPERTIES},
        **{name: _rouge(kind) for name, kind in ROUGE_KINDS.items()},
    },
    problem=_problem,
)
"""The rewards that look at one response."""


def register_reward(name: str, reward: Reward) -> Reward:
    """Let ``--rewards`` name a reward.

    Raises:
        UserError: the name is taken.
    """
    return REWARDS.register(name, reward)


def names() -> tuple[str, ...]:
    """Return the names that ``--rewards`` accepts."""
    return (ACCURACY, *REWARDS.names(), JUDGE)


def is_free_form(name: str) -> bool:
    """Whether a reward does not look for a marked answer."""
    return name == JUDGE or (name in REWARDS and REWARDS.find(name).free_form)


def reads(name: str) -> Reads:
    """Return the kind of response that a reward of ``--rewards`` scores."""
    return REWARDS.find(name).reads if name in REWARDS else "text"


def setting_names() -> set[str]:
    """The fields of the section of rewards that any reward reads."""
    return {name for reward in REWARDS.usable().values() for name in reward.settings}


def names_that_read(kind: Reads) -> tuple[str, ...]:
    """The names of the rewards that look at one kind of what policies generate."""
    return tuple(name for name, reward in REWARDS.usable().items() if reward.reads == kind)


def resolve(name: str, sample: RewardInput) -> str:
    """The reward of :data:`REWARDS` that is meant for a sample, or ``judge``.

    Raises:
        RewardError: the row asks for an accuracy that does not exist.
    """
    return kind_of(sample) if name == ACCURACY else name
