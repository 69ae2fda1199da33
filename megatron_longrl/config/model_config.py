"""The configuration of a model, without that of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from megatron_longrl.config.family import FamilySection
from megatron_longrl.config.lora import LoraSection
from megatron_longrl.config.model import ModelSection
from megatron_longrl.config.parallel import ParallelSection
from megatron_longrl.config.rotary import RotarySection
from megatron_longrl.config.section import Section
from megatron_longrl.config.training import TrainingSection

AnyFamily = TypeVar("AnyFamily", bound=FamilySection)


@dataclass(frozen=True)
class ModelConfig:
    """The sections of the model, its layout over ranks, and its trained parts.

    Modules, checkpoints, the mapping to Hugging Face's tensors and the stream of weights to an
    engine are made from these and from no others. A
    :class:`~megatron_longrl.config.schema.Config` is one, with the sections of a run beside them.
    """

    model: ModelSection
    rotary: RotarySection
    family: FamilySection
    """The fields of the model's family alone; :meth:`family_as` gives its own type."""
    parallel: ParallelSection
    training: TrainingSection
    lora: LoraSection

    def named_sections(self) -> dict[str, Section]:
        """The sections by attribute, in the order of --help."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def sections(self) -> list[Section]:
        """The sections in the order of --help."""
        return list(self.named_sections().values())

    def family_as(self, section: type[AnyFamily]) -> AnyFamily:
        """The section of the model's family.

        Raises:
            TypeError: it is not of this type.
        """
        return section.of(self.family)

    def value(self, flat_name: str) -> Any:
        """The value of a field.

        Raises:
            KeyError: there is no such field in this configuration.
        """
        for section in self.sections():
            names = section.flat_names()
            if flat_name in names:
                return getattr(section, names[flat_name])
        raise KeyError(flat_name)

    def flat(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """All values by flat name, defaults and derived ones included.

        Args:
            mode: json makes lists of tuples.
        """
        return {
            section.flat_name(name): value
            for section in self.sections()
            for name, value in section.model_dump(mode=mode).items()
        }

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the word embeddings: the vocabulary, padded so that it can be split.

        Raises:
            ValueError: the vocabulary's size is not known yet.
        """
        model = self.model
        if model.vocab_size is None:
            raise ValueError("the vocabulary's size comes from the tokenizer: set vocab_size")
        multiple = model.make_vocab_size_divisible_by * self.parallel.tensor_model_parallel_size
        return math.ceil(model.vocab_size / multiple) * multiple

    @property
    def trained_parts(self) -> frozenset[str]:
        """The parts of the model that ``--freeze-PART`` does not freeze."""
        return frozenset(part for part in self.family.parts if not self.value(f"freeze_{part}"))

    @property
    def embedding_width(self) -> int:
        """Channels of a media embedding: the language model's width, once for every level."""
        return self.model.hidden_size * self.family.embedding_levels
