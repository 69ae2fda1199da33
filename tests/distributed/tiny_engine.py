"""A random Qwen2 of two layers, prompts for it, and what Hugging Face says of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from megatron_longrl.config.parallel import ParallelSection
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.experience.rollouts import RolloutGroup, rollout_requests
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec
from megatron_longrl.parallel.groups import ParallelGroups, init_parallel
from tests.tiny_served import HF_CONFIG

if TYPE_CHECKING:
    from megatron_longrl.config import Config

VIEW = PreprocessSpec(8, 8, (0.5,) * 3, (0.5,) * 3)
NEVER = 299


def parallel(replica: int) -> ParallelGroups:
    """Groups of replicas of so many ranks (tensor-parallel for Megatron)."""
    parallel = ParallelSection(
        tensor_model_parallel_size=replica,
        distributed_timeout_minutes=2,
        distributed_backend="gloo",
    )
    config = SimpleNamespace(parallel=parallel, model=SimpleNamespace(num_query_groups=1))
    return init_parallel(cast("Config", config).parallel, cast("Config", config).model)


def model(seed: int) -> Qwen2ForCausalLM:
    """A random model; biases are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(**HF_CONFIG)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    return model


def some_prompts() -> tuple[list[Prompt], dict[str, Tensor]]:
    """Seven prompts of different lengths, the last without media, and the media."""
    generator = torch.Generator().manual_seed(3)
    prompts, media = [], {}
    for index, length in enumerate([40, 71, 33, 65, 50, 64, 20]):
        slots = 0 if index == 6 else 12 + index
        mask = torch.zeros(length, dtype=torch.bool)
        mask[4 : 4 + slots] = True
        videos: tuple[VideoSpec, ...] = ()
        if slots:
            videos = (VideoSpec("clip.webm", f"content-{index}", (0, 1), VIEW),)
            media[videos[0].key()] = torch.randn(slots, 128, generator=generator) * 0.3
        row = Row(str(index), "?", "A", "", (Path("clip.webm"),), "general", "video", "file:1")
        prompts.append(
            Prompt(
                uid=f"prompt-{index}",
                token_ids=torch.randint(0, 298, (length,), generator=generator),
                media_mask=mask,
                media=videos,
                media_lengths=(slots,) if slots else (),
                row=row,
            )
        )
    return prompts, media


PROMPTS, MEDIA = some_prompts()
REQUESTS = rollout_requests(PROMPTS, "tiny")


class Words:
    """A tokenizer as far as the engine needs one."""

    eos_id = NEVER
    end_ids = (NEVER,)
    origin = ("none", "none")

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


@torch.no_grad()
def reference_logprobs(model: Qwen2ForCausalLM, prompt: Prompt, response: Tensor) -> Tensor:
    """[R, vocabulary]: Hugging Face's log-probabilities where ``response`` is predicted."""
    table = model.get_input_embeddings()
    embeddings = table(prompt.token_ids)
    if prompt.media:
        embeddings[prompt.media_mask] = MEDIA[prompt.media[0].key()]
    embeddings = torch.cat([embeddings, table(response)])
    logits = model(inputs_embeds=embeddings[None]).logits[0]
    start = len(prompt.token_ids) - 1
    return logits[start : start + len(response)].log_softmax(-1)


def tokens(groups: list[RolloutGroup]) -> list[list[list[int]]]:
    return [[response.token_ids.tolist() for response in group.rollouts] for group in groups]
