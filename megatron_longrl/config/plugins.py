"""Fields of the user's own code."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from megatron_longrl.config.section import Metavar, Programs, Section, TextList


class PluginSection(Section):
    """plugins: code of your own

    docs/extending.md describes what a module can add.
    """

    programs: ClassVar[Programs] = ("sft", "rl", "evaluate", "generate", "serve")

    plugin: Annotated[TextList, Metavar("MODULE")] = Field(default_factory=list)
    """Python modules that are imported before the configuration is checked, on every rank: they
    register model families, rollout engines, rewards, algorithms or policies. Looked up on Python's
    path and in the working folder. May be repeated."""
