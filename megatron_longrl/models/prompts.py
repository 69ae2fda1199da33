"""The prompts of a run: its data's, with its model's layout of media."""

from __future__ import annotations

from megatron_longrl.config import Config, Entry
from megatron_longrl.data.prompts import PromptBuilder
from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.models.family import find_family


def prompt_builder(config: Config, tokenizer: Tokenizer, entry: Entry) -> PromptBuilder:
    """The builder of prompts of an entry point.

    Raises:
        UserError: the templates of the configuration do not suit the tokenizer.
    """
    family = find_family(config.model.family)
    layout = family.build_layout(config, tokenizer) if family.build_layout is not None else None
    modalities = {name for encoder in family.encoders.values() for name in encoder.modalities}
    return PromptBuilder.from_config(config, tokenizer, entry, layout, modalities)
