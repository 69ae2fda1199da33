"""The inputs of pre-training and of reinforcement learning of a flow-matching model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_longrl.config.data_sources import sources
from megatron_longrl.data.dataset import Sampler, sampler_of
from megatron_longrl.data.rows import Row, load_rows
from megatron_longrl.models.flow.frozen_parts import FrozenParts, frozen_parts
from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.parallel.rank_errors import raise_on_all_ranks
from megatron_longrl.training.flow.latents import latent_shape
from megatron_longrl.training.flow.prompt_embeddings import PromptEmbeddings
from megatron_longrl.training.run import Run


@dataclass(frozen=True)
class FlowInputs:
    """Rows, frozen parts and the size of latents, the same for both programs."""

    frozen: FrozenParts
    embeddings: PromptEmbeddings
    rows: Sampler
    valid: Sequence[Row]
    shape: tuple[int, ...]
    """The size of the latents of a picture or film."""


def load_inputs(run: Run) -> FlowInputs:
    """The inputs of a run.

    Raises:
        UserError: on every rank, where one of them cannot be read.
    """
    config = run.config
    with raise_on_all_ranks(run.groups.gloo_group):
        section = config.family_as(FlowSection)
        frozen = frozen_parts(config.model.family, section)
        shape = latent_shape(section, frozen.pixels_per_latent, frozen.frames_per_latent)
        named, columns = config.data.train_data_path, config.data.data_columns
        every = load_rows(named, columns=columns, answers=False)
        rows = sampler_of(every, config.training.seed, sources(named)[1])
        paths = config.data.valid_data_path
        valid = load_rows(paths, "heldout.jsonl", columns=columns, answers=False) if paths else []
    embeddings = PromptEmbeddings(frozen.encode_texts)
    return FlowInputs(frozen, embeddings, rows, valid[: config.evaluation.samples], shape)
