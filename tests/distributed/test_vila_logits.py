"""VILA's logits in every two-rank layout, of a batch of texts, images and videos, equal the float64
twin's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import config_from_hf, load_hf_weights
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.tokenizer import build_tokenizer, train_sentencepiece
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.training.runtime import Runtime, build_runtime
from tests.distributed.cases import CP2, PP2, SP, TP2
from tests.distributed.layouts import step_options
from tests.distributed.response_logits import response_logits
from tests.parity.comparison import assert_close
from tests.parity.test_vila_pictures_parity import MEDIA, Twin, row_of, write_media
from tests.runner.tiers import full_only
from tests.visual_media import visual

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": TP2,
    "TP2 with sequence parallelism": TP2 | SP,
    "TP2, the tower too": TP2 | {"vision_tensor_parallel": True},
    "PP2": PP2,
    "MR-SP2": CP2,
}
RESPONSES = [list(range(20 + number, 27 + 2 * number)) for number in range(len(MEDIA))]
"""Token ids, of another length for every prompt."""


@pytest.mark.parametrize(
    "kind",
    full_only(
        "tests/distributed/test_vila_logits.py::test_logits",
        ["plain", "tiles", "S2", "dynamic S2", "pooled"],
        ["dynamic S2"],
    ),
)
def test_logits(kind, shared_path):
    twin = make(shared_path, kind) if dist.get_rank() == 0 else None
    dist.barrier()
    files = media_files(shared_path)
    expected: list[Tensor] = []
    for layout in LAYOUTS.values():
        runtime = build_runtime(config_of(shared_path, **layout), "sft")
        weights, config = runtime.model.modules, runtime.config
        load_hf_weights(shared_path / "hf", weights, config, runtime.groups)
        prompts = [runtime.builder.build(row_of(media, files)) for media in MEDIA]
        if not expected:
            theirs = twin_logits(twin, runtime, prompts) if twin is not None else []
            expected = gather_objects(runtime.groups.gloo_group, theirs)[0]
        assert_close(torch.cat(response_logits(runtime, prompts, RESPONSES)), torch.cat(expected))


def make(folder: Path, kind: str) -> Twin:
    """Media, tokenizer and checkpoint; by one rank."""
    write_media(folder)
    train_sentencepiece([f"What happens here? {media}" for media in MEDIA], folder / "tok", 290)
    tokenizer = build_tokenizer("SentencePieceTokenizer", folder / "tok.model")
    (folder / "hf").mkdir()
    return Twin(folder / "hf", kind, tokenizer.vocab_size)


def media_files(folder: Path) -> dict[str, Path]:
    """What :func:`make` has written."""
    return {path.stem: path for end in ("png", "webm") for path in folder.glob(f"*.{end}")}


def config_of(folder: Path, **changes: Any) -> Config:
    values = {
        **config_from_hf(folder / "hf"),
        **step_options(folder),
        "video_frames": 6,
        "chat_template": "plain",
        "micro_batch_size": len(MEDIA),
        "encoder_chunk_frames": 4,
    }
    return Config.of(values | changes)


@torch.no_grad()
def twin_logits(twin: Twin, runtime: Runtime, prompts: list[Prompt]) -> list[Tensor]:
    """[R, v] of every prompt: what predicts its response."""
    found = []
    for (images, videos), prompt, response in zip(MEDIA.values(), prompts, RESPONSES, strict=True):
        pixels = [spec.frames() for spec in visual(prompt)]
        names, question = [*images, *videos], prompt.row.problem
        whole = twin.logits(runtime.tokenizer, names, question, pixels, response)
        found.append(whole[-len(response) - 1 : -1].float())
    return found
