"""Logits of responses in any layout, which lie on the ranks in parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_longrl.data.prompts import Prompt
from megatron_longrl.models.language import output_weight
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.training.batches import sft_batches
from megatron_longrl.training.language_step import LanguageTrainStep
from megatron_longrl.training.output_heads import selected_hidden
from megatron_longrl.training.runtime import Runtime
from megatron_longrl.training.sharding import MicroBatch


@torch.no_grad()
def response_logits(
    runtime: Runtime, prompts: Sequence[Prompt], responses: Sequence[list[int]]
) -> list[Tensor]:
    """[R, v] of each prompt: what predicts its response, on every rank."""
    groups, config = runtime.groups, runtime.config
    found: dict[tuple[int, int], Tensor] = {}

    def head(gpt: GPTModel, hidden: Tensor, batch: MicroBatch) -> Tensor:
        part = F.linear(selected_hidden(gpt, hidden, batch), output_weight(gpt))
        parts = [torch.empty_like(part) for _ in range(groups.tp.size())]
        dist.all_gather(parts, part, group=groups.tp)
        whole = torch.cat(parts, dim=1)[:, : config.model.vocab_size]
        place = (batch.response_index[batch.selected], batch.token_index[batch.selected])
        for number, token, row in zip(*(x.tolist() for x in place), whole, strict=True):
            found[number, token] = row
        return whole.t()

    batches = sft_batches(prompts, responses, config, groups)
    assert len(batches) == 1
    _, media = runtime.encode(prompts, for_training=False)
    step = LanguageTrainStep(runtime.model, runtime.train_step.media_encoder, groups, head)
    step.forward(batches, media.embeddings)
    for theirs in gather_objects(groups.gloo_group, found):
        found |= theirs
    return [
        torch.stack([found[number, token] for token in range(len(response))])
        for number, response in enumerate(responses)
    ]
