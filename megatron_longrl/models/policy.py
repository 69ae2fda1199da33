"""Policies that are no language models.

A policy is looked up by the name of its model family; a family without one is a language model.
Whoever brings a policy brings three things:

* its modules, which :meth:`Policy.build` makes from the configuration and the process groups;
* a :class:`~megatron_longrl.training.forward_step.ForwardStep`, through which
  :class:`~megatron_longrl.training.train_step.TrainStep` takes its micro-batches;
* its programs: what ``longrl train-rl`` and the others do with such a model. One that trains builds
a :class:`~megatron_longrl.training.run.Run` and gives its own trainer to the
:class:`~megatron_longrl.training.loop.TrainingLoop`, which saves, resumes, validates and logs as it
does for language models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megatron_longrl.config.family import FAMILY_SECTIONS, FamilySection
from megatron_longrl.errors import UserError
from megatron_longrl.registry import Registry, instance_of, loaded

if TYPE_CHECKING:
    import torch

    from megatron_longrl.config import Config, Entry, ModelConfig
    from megatron_longrl.models.diffusers_format import DiffusersFormat
    from megatron_longrl.models.param_mapping import MappingRegistry
    from megatron_longrl.parallel.groups import ParallelGroups


Program = Callable[["Config"], None]
"""Function that an entry point calls with a configuration."""


@dataclass(frozen=True)
class PolicyWeights:
    """The weights of a policy: their names in a folder, and their initial values."""

    mapping_table: Callable[[ModelConfig], MappingRegistry]
    """All parameters; the names of the module's begin with ``policy.``."""
    draw: Callable[[ModelConfig, str, torch.Size, torch.Generator], torch.Tensor]
    """(configuration, name in the table, shape, generator of this tensor) -> the initial value of a
    whole tensor."""
    diffusers: DiffusersFormat | None = None
    """The folders of diffusers that hold such weights."""


@dataclass(frozen=True)
class Policy:
    """A model that is no language model: how it is built and run."""

    build: Callable[[ModelConfig, ParallelGroups], torch.nn.Module]
    """Makes this rank's part, with its initial weights unless ``weights`` draws them: a
    MegatronModule, see :mod:`megatron_longrl.training.forward_step`."""
    programs: Mapping[Entry, Program | str]
    """Programs for such a model, or ``module:name`` of each, by the name of the entry point
    (``sft``, ``rl``, ``evaluate``). The process groups do not exist yet when a program begins."""
    required: tuple[str, ...] = ()
    """Fields of the configuration that have to be given."""
    required_of: Mapping[Entry, tuple[str, ...]] = field(default_factory=dict)
    """The fields of single programs, in place of ``required``."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields whose default is another one for this policy, by flat name."""
    unread: tuple[str, ...] = ()
    """Sections of the configuration, and flat names of fields, that the policy does not read. A run
    that gives one of them another value than its default is refused."""
    rules: Callable[[Config, int, Entry | None], Iterator[str]] | None = None
    """(configuration, number of ranks, entry point) -> a line for every rule across fields that
    does not hold."""
    weights: PolicyWeights | None = None
    """None where weights are neither read from a folder nor drawn by name."""
    frozen_parts: str | None = None
    """``module:name`` of the function that makes the frozen parts of a flow-matching family from a
    folder of diffusers and the most tokens of a text, see
    :class:`~megatron_longrl.models.flow.frozen_parts.FrozenParts`."""

    def required_by(self, entry: Entry) -> tuple[str, ...]:
        """Return the fields that a program needs."""
        return self.required_of.get(entry, self.required)

    def missing_program(self, entry: Entry) -> str | None:
        """The line that says that there is no such program; None where there is one."""
        if entry in self.programs:
            return None
        others = f", only for {', '.join(self.programs)}" if self.programs else ""
        return f"this model family has no program for {entry}{others}"

    def program(self, entry: Entry) -> Program:
        """Return the function that an entry point calls.

        Raises:
            UserError: the policy has no such program.
        """
        problem = self.missing_program(entry)
        if problem is not None:
            raise UserError(problem)
        found: Program = loaded(self.programs[entry])
        return found


POLICIES: Registry[Policy] = Registry(
    "policy",
    "megatron_longrl.policies",
    {
        "sd3": "megatron_longrl.models.sd3.policy:POLICY",
        "wan": "megatron_longrl.models.wan.policy:POLICY",
    },
    problem=instance_of(Policy),
)
"""The policies by the names of their model families."""


def register_policy(
    name: str, policy: Policy, section: type[FamilySection] = FamilySection
) -> None:
    """Let ``--model-family`` be ``name``, with a policy that is no language model.

    Args:
        section: fields of the configuration that only this policy has.

    Raises:
        UserError: there is a family of this name.
    """
    POLICIES.register(name, policy)
    FAMILY_SECTIONS.register(name, section)


def find_policy(family: str) -> Policy | None:
    """The policy of a model family; None where the family is a language model."""
    return POLICIES.find(family) if family in POLICIES else None
