"""The configuration of a run: one immutable object of sections.

Flags, recipes and checkpoints know the fields by flat names; code reads them in their sections, as
``config.rollout.max_tokens``.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from megatron_longrl.config.algorithm import AlgorithmSection
from megatron_longrl.config.checkpoint import CheckpointSection
from megatron_longrl.config.data import DataSection
from megatron_longrl.config.evaluation import EvaluationSection
from megatron_longrl.config.family import (
    FAMILY_SECTIONS,
    FamilySection,
    family_sections,
)
from megatron_longrl.config.generation import GenerationSection
from megatron_longrl.config.logs import LoggingSection
from megatron_longrl.config.lora import LoraSection
from megatron_longrl.config.model import ModelSection, saved_family_section
from megatron_longrl.config.model_config import ModelConfig
from megatron_longrl.config.names import flag
from megatron_longrl.config.parallel import ParallelSection
from megatron_longrl.config.plugins import PluginSection
from megatron_longrl.config.records import RECORD_FOLDER, RecordSection
from megatron_longrl.config.renamed import NEW_VALUES, new_name, present
from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.config.rl import RLSection
from megatron_longrl.config.rollout import RolloutSection
from megatron_longrl.config.rotary import RotarySection
from megatron_longrl.config.section import Entry, Section, bases_of
from megatron_longrl.config.training import TrainingSection
from megatron_longrl.errors import ConfigError
from megatron_longrl.registry import subclass_of
from megatron_longrl.spelling import nearest

_SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "rotary": RotarySection,
    "family": FamilySection,
    "parallel": ParallelSection,
    "training": TrainingSection,
    "lora": LoraSection,
    "data": DataSection,
    "algorithm": AlgorithmSection,
    "rl": RLSection,
    "reward": RewardSection,
    "rollout": RolloutSection,
    "records": RecordSection,
    "evaluation": EvaluationSection,
    "generation": GenerationSection,
    "checkpoint": CheckpointSection,
    "logging": LoggingSection,
    "plugins": PluginSection,
}
"""The section by the attribute of :class:`Config`, in the order of --help and --print-config; the
section of the run's model family takes the place of ``family``."""


def all_sections() -> list[type[Section]]:
    """The classes that declare fields, those of every registered model family among them."""
    found: list[type[Section]] = []
    for name, section in _SECTIONS.items():
        found += family_sections() if name == "family" else [section]
    return found


def all_fields() -> dict[str, FieldInfo]:
    """The fields of all sections by their flat names."""
    return {
        name: field for section in all_sections() for name, field in section.own_fields().items()
    }


def problem_of_section(name: str, value: object) -> str | None:
    """The reason why an object is no section of a model family of a user's own."""
    problem = subclass_of(FamilySection)(name, value)
    if problem is not None:
        return problem
    assert isinstance(value, type) and issubclass(value, FamilySection)
    families = [base for one in FAMILY_SECTIONS.ready().values() for base in bases_of(one)]
    others = [section for name, section in _SECTIONS.items() if name != "family"]
    for section in (*others, *dict.fromkeys(families)):
        if issubclass(value, section):
            continue  # Its fields are the same ones.
        for field in sorted(set(value.own_fields()) & set(section.own_fields())):
            return (
                f"{value.__name__} declares the field {field}, which {section.__name__} has "
                "already: give yours another name"
            )
    return None


def known_fields(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a saved configuration that this version knows for its model family, under their
    present names.

    Args:
        saved: the saved values by flat name.
    """
    saved = present(saved)
    sections = [section for name, section in _SECTIONS.items() if name != "family"]
    sections.append(saved_family_section(saved))
    names = {name for section in sections for name in section.flat_names()}
    return {name: value for name, value in saved.items() if name in names}


class InvalidConfig(ValueError):
    """Values that make no configuration.

    Attributes:
        problems: pydantic's descriptions, with the flat name of the field in ``loc``.
    """

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        super().__init__(describe_problems(problems, {}))
        self.problems = problems


@dataclass(frozen=True)
class Config(ModelConfig):
    """The configuration of a run. The fields are documented in the sections."""

    data: DataSection
    algorithm: AlgorithmSection
    rl: RLSection
    reward: RewardSection
    rollout: RolloutSection
    records: RecordSection
    evaluation: EvaluationSection
    generation: GenerationSection
    checkpoint: CheckpointSection
    logging: LoggingSection
    plugins: PluginSection

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that these values make, with the defaults of the others.

        Args:
            values: the values by flat name.

        Raises:
            InvalidConfig: a value of a wrong type or range, a missing or unknown field.
        """
        left = dict(values)
        problems: list[dict[str, Any]] = []
        sections: dict[str, Section] = {}
        for attribute, section in _SECTIONS.items():
            if attribute == "family":
                if "model" not in sections:
                    # Nobody knows whose fields the others are.
                    fields = {name for base in family_sections() for name in base.own_fields()}
                    left = {name: value for name, value in left.items() if name not in fields}
                    continue
                section = FAMILY_SECTIONS.find(sections["model"].family)  # type: ignore[attr-defined]
            names = section.flat_names()
            own = {names[name]: left.pop(name) for name in list(left) if name in names}
            try:
                sections[attribute] = section.model_validate(own)
            except ValidationError as error:
                problems += [_located(problem, section, own) for problem in _errors(error)]
        problems += [
            _unknown(name, value, values)
            for name, value in left.items()
            if not _means_nothing(name, value)
        ]
        if problems:
            raise InvalidConfig(problems)
        return cls(**sections)  # type: ignore[arg-type]

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields, by their flat names, changed; derived fields follow.

        Raises:
            ConfigError: values of a wrong type or range.
        """
        try:
            return self.of(self.given() | changes)
        except InvalidConfig as error:
            raise ConfigError(str(error)) from None

    def given(self) -> dict[str, Any]:
        """The values that were set explicitly, without defaults and derived ones, by flat name."""
        return {
            section.flat_name(name): value
            for section in self.sections()
            for name, value in section.model_dump(include=section.model_fields_set).items()
        }

    def changed(self, names: Collection[str]) -> list[str]:
        """The flat names of the fields that were given another value than they would have without.

        Args:
            names: flat names of fields, and attributes of sections, whose fields are meant.
        """
        given = self.given()
        sections = {
            section.flat_name(name): attribute
            for attribute, section in self.named_sections().items()
            for name in section.model_fields_set
        }
        found = [name for name in given if name in names or sections[name] in names]
        without = self.of({name: value for name, value in given.items() if name not in found})
        return [name for name in found if self.value(name) != without.value(name)]

    def derived(self) -> frozenset[str]:
        """The flat names of the fields whose values were computed from others."""
        return frozenset(
            section.flat_name(name)
            for section in self.sections()
            for name in section.derived_fields() - section.model_fields_set
        )

    @property
    def rollout_model_len(self) -> int:
        """Longest prompt with its response, in tokens: answers of evaluation are not trained, so
        that they may exceed a row."""
        longer = max((self.evaluation.max_tokens or 0) - self.rollout.max_tokens, 0)
        return min(self.training.seq_length + longer, self.model.max_position_embeddings)

    @property
    def rollout_record(self) -> str | None:
        """Folder of the record of rollouts; None: nothing is recorded."""
        records = self.records
        if not records.record_rollouts or records.replay_rollouts is not None:
            return None
        if records.rollout_record_dir is not None:
            return records.rollout_record_dir
        save = self.checkpoint.save
        return None if save is None else f"{save}/{RECORD_FOLDER}"

    def rows_per_step(self, world_size: int, entry: Entry) -> int:
        """Rows of data that one step takes: prompts for RL, demonstrations for SFT."""
        prompts = self.rl.grpo_prompts_per_step if entry == "rl" else 0
        return prompts or self.samples_per_step(world_size, "sft")

    def samples_per_step(self, world_size: int, entry: Entry) -> int:
        """Samples of one optimizer step: rows for SFT, sampled responses for RL."""
        if entry == "rl":
            return self.rl.responses_per_step
        return self.training.samples_per_step(self.parallel.data_parallel_size(world_size))

    @property
    def mini_batches_per_step(self) -> int:
        """Optimizer steps of one pass over the responses of an RL step."""
        batch = self.training.global_batch_size
        return self.rl.responses_per_step // batch if batch else 1

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of an RL step."""
        return self.rl.grpo_iterations * self.mini_batches_per_step

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the policy's log-probabilities before the update take a separate pass."""
        algorithm = self.algorithm
        return self.updates_per_step > 1 or algorithm.rewards_tokens or algorithm.needs_critic

    @property
    def forward_passes(self) -> int:
        """Number of forward-only passes of an RL step over its sequences, without those of a
        critic."""
        return self.needs_old_logprobs + (self.algorithm.grpo_kl_beta > 0)

    @property
    def rollout_tp_size(self) -> int:
        """Tensor-parallel size of the rollout engine, derived when it is not given."""
        if self.rollout.tensor_parallel_size is not None:
            return self.rollout.tensor_parallel_size
        size, model = self.parallel.model_parallel_size, self.model
        groups = model.num_query_groups
        splits = (
            model.num_attention_heads % size == 0
            and model.ffn_hidden_size % size == 0
            and (groups % size == 0 or size % groups == 0)
        )
        return size if splits else 1


def _means_nothing(name: str, value: Any) -> bool:
    """Return whether a value is the default of another model family's field; older recipes list the
    fields of all families."""
    for section in family_sections():
        field = section.own_fields().get(name)
        if field is not None and field.get_default() in (value, _as_tuple(value)):
            return True
    return False


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _errors(error: ValidationError) -> list[dict[str, Any]]:
    return [dict(problem) for problem in error.errors(include_url=False)]


def _located(
    problem: dict[str, Any], section: type[Section], own: Mapping[str, Any]
) -> dict[str, Any]:
    """The problem with the flat name of its field, and whether the field's default is wrong, as an
    algorithm of a user's own may set it."""
    place = problem["loc"]
    if not place:
        return problem
    name, *rest = place
    of_algorithm = section is AlgorithmSection and name not in own
    algorithm = own.get("rl_algorithm", AlgorithmSection.model_fields["rl_algorithm"].default)
    origin = {"origin": f"set by --rl-algorithm {algorithm}"} if of_algorithm else {}
    return {**problem, **origin, "loc": (section.flat_name(str(name)), *rest)}


def _unknown(name: str, value: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The problem of a field that no section of this configuration has."""
    renamed = new_name(name)
    reason = "there is no such field"
    if renamed is not None:
        reason = f"this field is called {renamed} now"
    if name in all_fields():
        reason = f"no field of model_family {values.get('model_family', 'vila')}: leave it out"
    return {"type": "extra_forbidden", "loc": (name,), "msg": reason, "input": value}


def describe_problems(problems: list[dict[str, Any]], origins: Mapping[str, str]) -> str:
    """Describe all problems of invalid values in one line.

    Args:
        problems: see :class:`InvalidConfig`.
        origins: the place where each field was set, by its flat name.
    """
    missing: list[str] = []
    wrong: list[str] = []
    for item in problems:
        field = str(item["loc"][0]) if item["loc"] else "configuration"
        if item["type"] == "default_factory_not_called":
            continue  # A derived field: what it derives from is already in the list.
        if item["type"] == "missing":
            missing.append(field)
            continue
        expected = item["msg"].replace("Input should be", "expected").replace("Input", "value")
        expected = expected.removeprefix("Value error, ")
        if item["type"] == "literal_error" and isinstance(item["input"], str):
            expected += nearest(item["input"], re.findall(r"'([^']*)'", expected))
        renamed = NEW_VALUES.get(field, {}).get(str(item["input"]))
        if renamed is not None:
            expected = f"this value is called {renamed} now"
        origin = item.get("origin", origins.get(field))
        place = f" ({origin})" if origin else ""
        wrong.append(f"{field} = {_shown(item['input'], field)}{place}: {expected}")
    if missing:
        wrong.append(
            f"{', '.join(missing)} not set: give {flag(missing[0])} ..., or put it into the "
            "--config recipe"
        )
    return "; ".join(wrong)


_MAY_HOLD_SECRETS = ("reward_kwargs", "judge_url", "judge_api_key_variable")
_LONGEST_SHOWN = 200
"""Characters of a value in a message."""


def _shown(value: Any, field: str) -> str:
    """Shorten a wrong value for a message; it may be a secret in a wrong form."""
    if field in _MAY_HOLD_SECRETS:
        return "(not shown)"
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 2, _LONGEST_SHOWN, _LONGEST_SHOWN
    return shown.repr(value)
