"""The section of a model family: the fields of its encoders, and their properties that the rest of
the package needs.

A family's own package declares a subclass; a family of a user's own registers it in
:data:`FAMILY_SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

from megatron_longrl.config.section import Section, bases_of
from megatron_longrl.registry import Registry


class FamilySection(Section):
    """family: the fields of a model family alone"""

    parts: ClassVar[Mapping[str, str]] = MappingProxyType({"language_model": "language_model"})
    """The parts of the model that can be frozen (``--freeze-PART``) or get adapters
    (``--lora-parts``), and the path of each: its module, and the submodule behind a dot."""

    @classmethod
    def of(cls, family: FamilySection) -> Self:
        """The section of a family, which has to be of this class.

        Raises:
            TypeError: it is of another one.
        """
        if not isinstance(family, cls):
            raise TypeError(f"{type(family).__name__} is no {cls.__name__}")
        return family

    @property
    def reads_media(self) -> bool:
        """Whether the family reads anything but text."""
        return len(self.parts) > 1

    @property
    def hears_videos(self) -> bool:
        """Whether the sound of a video can belong to it."""
        return False

    @property
    def embedding_levels(self) -> int:
        """The widths of the language model that a media embedding takes: one, and one more for
        every layer of DeepStack."""
        return 1

    @property
    def tokens_per_frame(self) -> int:
        """The media tokens of a video frame, without what separates frames; 0 where frames differ
        in size or the family sees none."""
        return 0

    @property
    def frames_per_step(self) -> int:
        """The consecutive frames of a video whose tokens are one frame's."""
        return 1

    def frame_flops(self, hidden_size: int) -> float:
        """Operations of the encoder for a video frame, where :attr:`tokens_per_frame` is known.

        Args:
            hidden_size: width of the language model.
        """
        return 0.0

    def rules(self, value_of: Callable[[str], Any]) -> Iterator[str]:
        """A line for every rule across fields that does not hold.

        Args:
            value_of: the value of any field of the configuration by its flat name.
        """
        yield from ()


_TEXT = "megatron_longrl.models.text.config:TextSection"

FAMILY_SECTIONS: Registry[type[FamilySection]] = Registry(
    "model family",
    "megatron_longrl.family_sections",
    {
        "vila": "megatron_longrl.models.vila.config:VilaSection",
        **dict.fromkeys(("qwen2", "qwen3", "llama"), _TEXT),
        "qwen2_5_vl": "megatron_longrl.models.qwen2_5_vl.config:Qwen25VLSection",
        "qwen3_vl": "megatron_longrl.models.qwen3_vl.config:Qwen3VLSection",
        "qwen2_5_omni": "megatron_longrl.models.qwen2_5_omni.config:OmniSection",
        "sd3": "megatron_longrl.models.sd3.config:SD3Section",
        "wan": "megatron_longrl.models.wan.config:WanSection",
    },
    problem="megatron_longrl.config.schema:problem_of_section",
)
"""The section of every model family by its name, which ``--model-family`` takes."""


def _all() -> list[type[FamilySection]]:
    return list(FAMILY_SECTIONS.usable().values())


def part_names() -> list[str]:
    """The names of the parts of all families."""
    return sorted({part for section in _all() for part in section.parts})


def family_sections() -> list[type[Section]]:
    """The classes that declare fields of some family: bases before those that inherit from them,
    each once."""
    found: dict[type[Section], None] = {}
    for section in _all():
        found |= dict.fromkeys(bases_of(section))
    return list(found)
