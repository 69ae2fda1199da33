"""Pictures by deterministic sampling with the weights of a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np

from megatron_longrl.checkpoint.loading import load_weights
from megatron_longrl.config.presets import ALGORITHMS
from megatron_longrl.models.flow.frozen_parts import frozen_parts
from megatron_longrl.models.flow.section import FlowSection
from megatron_longrl.observability.progress import ProgressLines
from megatron_longrl.parallel.rank_errors import raise_on_all_ranks
from megatron_longrl.planner.packing import even_part
from megatron_longrl.platforms import platform
from megatron_longrl.rl.flow.pictures import decode_share
from megatron_longrl.rl.flow.sampling import FlowSampler, Wanted
from megatron_longrl.rl.flow.settings import FlowSettings
from megatron_longrl.training.flow.latents import latent_shape
from megatron_longrl.training.flow.prompt_embeddings import PromptEmbeddings
from megatron_longrl.training.flow.velocity_step import VelocityStep
from megatron_longrl.training.run import Run

DRAWING = -2
"""The iteration by whose random numbers pictures are drawn; no step and no validation has it."""


class Drawer:
    """Draws pictures of prompts, each replica some of them; collective over the world.

    Samples are deterministic given their first noise, which depends on the seed of the run, the
    number of the prompt and that of the sample only.

    Args:
        run: the run of a program that does not train; it gets its weights here.
    """

    def __init__(self, run: Run) -> None:
        self.run, config = run, run.config
        section = config.family_as(FlowSection)
        self._section, self._size = section, config.training.micro_batch_size
        groups, model = self.run.groups, self.run.model
        with raise_on_all_ranks(groups.gloo_group):
            self._frozen = frozen_parts(config.model.family, section)
            frozen = self._frozen
            shape = latent_shape(section, frozen.pixels_per_latent, frozen.frames_per_latent)
        load_weights(
            config.checkpoint.starts_from or "",
            modules=model.modules,
            optimizers=model.optimizers,
            groups=groups,
            config=config,
            use_ema=section.use_ema,
        )
        self._embeddings = PromptEmbeddings(self._frozen.encode_texts)
        empty = self._embeddings.of([""])[0] if section.guidance_scale != 1 else None
        step = VelocityStep(model.policy.module, section.guidance_scale, empty)
        preset = ALGORITHMS.find("flow_grpo").flow
        assert preset is not None, "it is one of pictures"
        settings = FlowSettings(section, preset)
        self._sampler = FlowSampler(step, settings, shape, config.training.seed, platform.device)
        self._sigmas = settings.sigmas(section.eval_sampling_steps)

    def mine(self, count: int) -> list[int]:
        """The numbers of this replica's prompts among ``count``."""
        dp = self.run.groups.dp
        return even_part(range(count), dp.rank(), dp.size())

    def draw(
        self, prompts: Sequence[str], samples: int, title: str
    ) -> Iterator[tuple[list[tuple[int, int]], dict[int, np.ndarray]]]:
        """Pictures of this replica's prompts, in micro-batches.

        Args:
            prompts: the prompts of all replicas.
            samples: pictures of each prompt.
            title: the title of the bar on a terminal.

        Yields:
            (number of the prompt, number of the sample) of each picture of a micro-batch, and the
            pictures of this rank's share, uint8 [height, width, 3], by their places in that list.

        Raises:
            UserError: latents are not finite.
        """
        numbers = self.mine(len(prompts))
        texts = self._embeddings.of([prompts[number] for number in numbers])
        wanted = [
            Wanted(number, index, text)
            for number, text in zip(numbers, texts, strict=True)
            for index in range(samples)
        ]
        group = self.run.groups.replica_gloo_group
        progress = ProgressLines(title, len(wanted), sys.stderr)
        for first in range(0, len(wanted), self._size):
            part = wanted[first : first + self._size]
            drawn = self._sampler.sample(part, DRAWING, self._sigmas, range(0))
            pictures = decode_share(self._frozen, [drawn.latents], group.rank(), group.size())
            yield [(one.prompt, one.index) for one in part], pictures
            if self.run.is_writer:
                progress.step(first + len(part), "")
        progress.close()
