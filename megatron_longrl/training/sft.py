"""Supervised fine-tuning on chains of thought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_longrl.data.curriculum import frames_at
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.training.batches import sft_batches
from megatron_longrl.training.data_iterator import DataIterator
from megatron_longrl.training.losses import sft_loss
from megatron_longrl.training.runtime import Runtime
from megatron_longrl.training.sharding import MicroBatch
from megatron_longrl.training.train_step import SkippedUpdates


class SFTTrainer:
    """Next-token training on the demonstrations' responses.

    Args:
        runtime: model, data and logs of the run.
        state: the state that :meth:`state` returned when the run was saved.
    """

    def __init__(self, runtime: Runtime, state: Mapping[str, Any] | None = None) -> None:
        self.runtime = runtime
        self._skips = SkippedUpdates.restored(state)

    def step(self, iteration: int, source: DataIterator) -> dict[str, float]:
        """One optimizer step; returns its metrics over all replicas."""
        timer = self.runtime.timer
        self.runtime.builder.max_frames = frames_at(iteration, self.runtime.config.data)
        with timer("data"):
            prompts = self.runtime.build_prompts(source.take())
        with timer("encode"):
            prompts, media = self.runtime.encode(prompts, for_training=True)
        self._load_ahead(iteration, source)
        with timer("pack"):
            batches = self._batches(prompts)
        with timer("update"):
            result = self.runtime.train_step.train(
                batches, media.embeddings, media.encoded, sft_loss
            )
        self._skips.count(result, iteration)
        return {**result.as_metrics(), **self.runtime.media_metrics(media)}

    def _load_ahead(self, iteration: int, source: DataIterator) -> None:
        """Begin with the media of the next step, which are loaded while this one trains."""
        if not source.goes_on(iteration):
            return
        runtime = self.runtime
        further = source.next_rows(further=1) if source.goes_on(iteration + 1) else []
        runtime.builder.max_frames = frames_at(iteration + 1, runtime.config.data)
        with runtime.timer("data"):
            runtime.load_ahead(source.next_rows(), further, for_training=True)

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return self._skips.state()

    def validate(self, rows: Sequence[Row]) -> dict[str, float]:
        """Mean loss on the rows of this replica, over all replicas."""
        size = self.runtime.config.evaluation.batch_size
        total = tokens = 0.0
        # Every replica runs the same number of chunks: the sums are collective.
        chunks = -(-self.runtime.most_rows(rows) // size)
        for chunk in range(chunks):
            part = rows[chunk * size : (chunk + 1) * size]
            prompts = self.runtime.build_prompts(part)
            prompts, media = self.runtime.encode(prompts, for_training=False)
            sums = self.runtime.train_step.evaluate(
                self._batches(prompts), media.embeddings, sft_loss
            )
            loss, count = sums.sums.get("lm loss", (0.0, 0.0))
            total, tokens = total + loss, tokens + count
        return {
            "valid/lm loss": total / tokens if tokens else 0.0,
            "valid/samples_skipped": self.runtime.media_metrics(None)["samples_skipped"],
        }

    def _batches(self, prompts: Sequence[Prompt]) -> list[MicroBatch]:
        responses = [self.runtime.builder.response_ids(prompt.row) for prompt in prompts]
        runtime = self.runtime
        return sft_batches(prompts, responses, runtime.config, runtime.groups, runtime.hardware)
