"""Policies that are no language models.

A policy is looked up by the name of its model family; a family without one is a language model.
Whoever brings a policy brings three things:

* its modules, which :meth:`Policy.build` makes from the configuration and the process groups;
* a :class:`~megatron_longrl.training.forward_step.ForwardStep`, through which
  :class:`~megatron_longrl.training.train_step.TrainStep` takes its micro-batches;
* its programs: what ``longrl train-rl`` and the others do with such a model, made of the parts that
  the language models' programs are made of (:mod:`megatron_longrl.training.model` builds, wraps and
  optimizes modules, :mod:`megatron_longrl.checkpoint.saving` and
  :mod:`megatron_longrl.checkpoint.loading` save and load them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_longrl.config.family import FAMILY_SECTIONS, FamilySection
from megatron_longrl.errors import UserError
from megatron_longrl.registry import Registry

if TYPE_CHECKING:
    import torch

    from megatron_longrl.config import Config, Entry, ModelConfig
    from megatron_longrl.parallel.groups import ParallelGroups


Program = Callable[["Config"], None]
"""Function that an entry point calls with a configuration."""


@dataclass(frozen=True)
class Policy:
    """A model that is no language model: how it is built and run."""

    build: Callable[[ModelConfig, ParallelGroups], torch.nn.Module]
    """Makes this rank's part, with its initial weights: a MegatronModule, see
    :mod:`megatron_longrl.training.forward_step`."""
    programs: Mapping[Entry, Program]
    """Programs for such a model by the name of the entry point (``sft``, ``rl``, ``evaluate``). The
    process groups do not exist yet when a program begins."""
    required: tuple[str, ...] = ()
    """Fields of the configuration that have to be given."""
    rules: Callable[[Config, int, Entry | None], Iterator[str]] | None = None
    """(configuration, number of ranks, entry point) -> a line for every rule across fields that
    does not hold."""

    def program(self, entry: Entry) -> Program:
        """Return the function that an entry point calls.

        Raises:
            UserError: the policy has no such program.
        """
        if entry not in self.programs:
            raise UserError(
                f"this model family has no program for {entry}, only for {', '.join(self.programs)}"
            )
        return self.programs[entry]


POLICIES: Registry[Policy] = Registry("policy", "megatron_longrl.policies")
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
