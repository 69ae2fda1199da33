"""Logits of Qwen2.5-Omni in every two-rank layout, of a batch of a text, an image, a film, sound, a
film with its sound, and silence, equal transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longrl.conversion.hf import HfFolder, load_hf_weights
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.media.modality import MediaFile
from megatron_longrl.models.hf_reference import load_model
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.training.runtime import Runtime, build_runtime
from tests.distributed.cases import CP2, PP2, SP, TP2
from tests.distributed.families import run_config, their_logits
from tests.distributed.response_logits import response_logits
from tests.parity.comparison import assert_close

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": TP2,
    "TP2 with sequence parallelism, the tower too": TP2 | SP | {"vision_tensor_parallel": True},
    "PP2": PP2,
    "MR-SP2": CP2,
    "MR-SP2 a2a": CP2 | {"cp_comm_type": "a2a"},
    "MR-SP2 p2p": CP2 | {"cp_comm_type": "p2p"},
}
KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "image": {"images": ["2-0.png"]},
    "film": {"videos": ["0-0.mp4"], "heard": False},
    "sound": {"audios": ["3-0.flac"]},
    "film with sound": {"videos": ["0-0.mp4"], "heard": True},
    "two films, one of them silent": {"videos": ["2-0.mp4", "2-1.mp4"], "heard": True},
}
"""By the files of the family's folder."""
RESPONSES = [list(range(20 + number, 27 + 2 * number)) for number in range(len(KINDS))]
"""Token ids, of another length for every prompt."""


def row_of(folder: Path, kind: str) -> Row:
    told = KINDS[kind]
    return Row(
        problem_id=kind,
        problem="What happens here?",
        answer="A",
        reasoning="",
        videos=tuple(folder / name for name in told.get("videos", ())),
        problem_type="general",
        data_type="text",
        source=kind,
        images=tuple(folder / name for name in told.get("images", ())),
        other_media=tuple(MediaFile(folder / name, "audio") for name in told.get("audios", ())),
        audio_in_video=told.get("heard"),
    )


@torch.no_grad()
def transformers_logits(folder: Path, runtime: Runtime, prompts: list[Prompt]) -> Tensor:
    source, model = HfFolder(folder / "hf"), load_model(folder / "hf")
    pairs = zip(prompts, RESPONSES, strict=True)
    return torch.cat([their_logits(model, source, runtime.config, *pair) for pair in pairs])


def test_logits(family_folder):
    folder = family_folder("qwen2_5_omni")
    expected: Tensor | None = None
    for name, layout in LAYOUTS.items():
        config = run_config(folder, micro_batch_size=len(KINDS), **layout)
        runtime = build_runtime(config, "sft")
        load_hf_weights(folder / "hf", runtime.model.modules, runtime.config, runtime.groups)
        prompts = [runtime.builder.build(row_of(folder, kind)) for kind in KINDS]
        if expected is None:
            theirs = transformers_logits(folder, runtime, prompts) if dist.get_rank() == 0 else None
            expected = gather_objects(runtime.groups.gloo_group, theirs)[0]
            assert expected is not None
        ours = torch.cat(response_logits(runtime, prompts, RESPONSES))
        try:
            assert_close(ours, expected)
        except AssertionError as error:
            pytest.fail(f"{name}: {error}")
