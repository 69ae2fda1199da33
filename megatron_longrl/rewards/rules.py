"""Rules across the fields of rewards; see :mod:`megatron_longrl.cli.rules`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longrl.config.names import flag
from megatron_longrl.errors import UserError
from megatron_longrl.rewards.picture_models import folder_problem
from megatron_longrl.rewards.registry import REWARDS, reads
from megatron_longrl.rewards.terms import reward_terms

if TYPE_CHECKING:
    from megatron_longrl.config.parallel import ParallelSection
    from megatron_longrl.config.rewards import RewardSection


def reward_rules(reward: RewardSection, parallel: ParallelSection) -> Iterator[str]:
    """A line for every rule that does not hold."""
    yield from scoring_rules(reward)
    if reward.reward_step_timeout >= 60 * parallel.distributed_timeout_minutes:
        yield (
            f"reward_step_timeout ({reward.reward_step_timeout:g} s) is not shorter than "
            f"distributed_timeout_minutes ({parallel.distributed_timeout_minutes:g}), after which "
            "other ranks no longer wait: raise --distributed-timeout-minutes"
        )


def model_rules(reward: RewardSection) -> Iterator[str]:
    """A line for every model that a reward of pictures needs and that is not there."""
    folders: dict[str, str] = {}
    for text in reward.rewards:
        name = text.partition("=")[0]
        if name not in REWARDS:
            continue
        library = REWARDS.find(name).library
        if library is not None and find_spec(library.partition(".")[0]) is None:
            yield f"rewards has {name}, which needs the package {library}: pip install {library}"
        for field in REWARDS.find(name).needs:
            value = getattr(reward, field)
            if value is None:
                yield f"rewards has {name}, but {field} is not set: give {flag(field)} ..."
            elif field.endswith("_model"):
                folders[field] = value
            elif not Path(value).is_file():
                yield f"{field}: {value} is no file"
    yield from filter(None, (folder_problem(*named) for named in folders.items()))


def scoring_rules(config: RewardSection) -> Iterator[str]:
    """Yield violations of the rules that hold wherever responses are scored."""
    try:
        terms = reward_terms(config)
    except UserError as error:
        yield str(error)
        return
    pictures = [term.name for term in terms if reads(term.name) == "picture"]
    if pictures:
        yield (
            f"rewards {', '.join(pictures)} look at pictures, and the model generates text: leave "
            "them out"
        )
    if not any(term.weight for term in terms):
        yield (
            "rewards and reward_function give nothing a weight, every reward would be 0: "
            "give e.g. --rewards accuracy=0.9 format=0.1"
        )
    if config.reward_kwargs and not config.reward_function:
        yield "reward_kwargs is set without reward_function: give --reward-function FILE.py:NAME"
    if any(term.name == "judge" for term in terms):
        for name in ("judge_url", "judge_model"):
            if not getattr(config, name):
                yield f"rewards has judge, but {name} is not set: give {flag(name)} ..."
    if not re.fullmatch(r"[A-Za-z_]\w*", config.judge_api_key_variable, re.ASCII):
        # Not shown: it may be the key itself.
        yield (
            "judge_api_key_variable is not the name of an environment variable: "
            "the key itself stands in no flag or recipe, give e.g. OPENAI_API_KEY"
        )
