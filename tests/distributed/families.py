"""A training step of each model family against transformers' own model, in any layout."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import HfFolder, config_from_hf, load_hf_weights
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.tokenizer import build_tokenizer, train_sentencepiece
from megatron_longrl.experience.rollouts import RolloutGroup
from megatron_longrl.models.hf_reference import Reference, load_model
from megatron_longrl.registry import loaded
from megatron_longrl.training.runtime import Runtime, build_runtime
from tests import tiny_omni
from tests.audio_files import write_film, write_sound
from tests.distributed.layouts import (
    TOLERANCE,
    largest_error,
    policy_loss,
    rollouts,
    step_options,
    train_step,
    write_video,
)
from tests.qwen_vl_files import SPECIAL
from tests.tiny_qwen_vl import hugging_face

TEXT_SIZES: dict[str, dict[str, Any]] = {
    "qwen2": {"hidden_size": 56, "num_attention_heads": 28, "tie_word_embeddings": True},
    # One key and value head, which both ranks of TP2 have.
    "qwen3": {
        "hidden_size": 48,
        "num_attention_heads": 28,
        "num_key_value_heads": 1,
        "head_dim": 4,
    },
    "llama": {"hidden_size": 64, "num_attention_heads": 4},
}
SMALL = {"video_min_pixels": 256, "video_max_pixels": 1600, "image_min_pixels": 256}
"""Budgets of pixels."""
Pictures = list[tuple[int, int]]
Clips = list[tuple[int, int, int]]
MEDIA: tuple[tuple[Pictures, Clips], ...] = (
    ([], [(9, 40, 24)]),
    ([], []),
    ([(20, 28)], [(4, 24, 24), (7, 48, 32)]),
    ([(33, 17)], []),
)
"""Images (height, width) and videos (frames, width, height) of each row."""
SOUNDS: tuple[tuple[list[float | None], list[float]], ...] = (
    ([2.2], []),
    ([], []),
    ([1.1, None], [0.3]),
    ([], [5.31, 2.0]),
)
"""Of Omni's rows: seconds of the sound in each video, of which one is silent, and of files."""


def write_family(folder: Path, family: str) -> None:
    """A checkpoint, a tokenizer and rows; by one rank."""
    generator = np.random.default_rng(0)
    lines = [json.dumps(row) for row in _rows(folder, family, generator)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    symbols = symbols_of(family)
    pieces = tuple((symbols or SPECIAL).values())
    train_sentencepiece(lines, folder / "tok", 310, pieces)
    tokenizer = build_tokenizer("SentencePieceTokenizer", folder / "tok.model")
    ids: dict[str, Any] = {name: tokenizer.id_of(symbol) for name, symbol in symbols.items()}
    if "omni" in family:
        model = tiny_omni.thinker(vocab_size=tokenizer.vocab_size, **ids)
    elif symbols:
        model = hugging_face(family, vocab_size=tokenizer.vocab_size, **ids)
    else:
        model = _text_model(family, tokenizer.vocab_size)
    model.save_pretrained(folder / "hf")


def _rows(folder: Path, family: str, generator: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for number, (images, videos) in enumerate(MEDIA):
        row: dict[str, Any] = {
            "problem_id": number,
            "problem": f"What happens in {number}?",
            "answer": "A",
            "data_type": "text",
        }
        if "omni" in family:
            row |= {"images": [f"{number}-{k}.png" for k in range(len(images))]}
            row |= _films_and_sounds(folder, number, generator)
        elif "vl" in family:
            row |= {"images": [], "videos": []}
            row["images"] += [f"{number}-{k}.png" for k in range(len(images))]
            for k, (frames, width, height) in enumerate(videos):
                row["videos"].append(f"{number}-{k}.webm")
                write_video(folder / row["videos"][-1], frames, generator, width, height)
            row["data_type"] = "video" if videos else "image" if images else "text"
        for name, (height, width) in zip(row.get("images", ()), images, strict=False):
            picture = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / name)
        rows.append(row)
    return rows


def symbols_of(family: str) -> dict[str, str]:
    """What stands for media in a family's prompts, by the names of ``config.json``."""
    if "omni" in family:
        return tiny_omni.SYMBOLS
    return SPECIAL if "vl" in family else {}


def _films_and_sounds(folder: Path, number: int, generator: np.random.Generator) -> dict[str, Any]:
    row: dict[str, Any] = {"videos": [], "audios": []}
    within, alone = SOUNDS[number]
    for k, ((frames, width, height), seconds) in enumerate(
        zip(MEDIA[number][1], within, strict=True)
    ):
        pictures = generator.integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
        track = None if seconds is None else [(0.0, _noise(seconds, 48_000, generator))]
        row["videos"].append(f"{number}-{k}.mp4")
        write_film(folder / row["videos"][-1], list(pictures), 4, track)
    for k, seconds in enumerate(alone):
        row["audios"].append(f"{number}-{k}.flac")
        write_sound(folder / row["audios"][-1], _noise(seconds, 16_000, generator))
    kinds = ("video", "audio")
    row["data_type"] = next((kind for kind in kinds if row[f"{kind}s"]), "text")
    return row


def _noise(seconds: float, rate: int, generator: np.random.Generator) -> np.ndarray:
    return generator.normal(0, 0.1, round(seconds * rate)).astype(np.float32)


def _text_model(family: str, vocab_size: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    settings = AutoConfig.for_model(
        family,
        vocab_size=vocab_size,
        intermediate_size=48,
        num_hidden_layers=2,
        max_position_embeddings=1024,
        **{"num_key_value_heads": 4, **TEXT_SIZES[family]},
    )
    model = AutoModelForCausalLM.from_config(settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.05, std=0.2)
    return model


def run_config(folder: Path, **changes: object) -> Config:
    """A run of the checkpoint on the rows."""
    values: dict[str, object] = {
        **config_from_hf(folder / "hf"),
        **step_options(folder),
        "make_vocab_size_divisible_by": 8,
        "encoder_chunk_frames": 4,
    }
    if values["model_family"] in ("qwen2_5_vl", "qwen3_vl"):
        values |= SMALL
    if values["model_family"] == "qwen2_5_omni":
        values |= {**SMALL, "audio_in_video": True, "missing_audio": "silence"}
    return Config.of(values | changes)


def check_family(folder: Path, **changes: object) -> None:
    """Loss and all gradients of a layout equal those of transformers' model.

    Args:
        folder: what :func:`write_family` has filled.
    """
    config = run_config(folder, **changes)
    runtime = build_runtime(config, "rl")
    load_hf_weights(folder / "hf", runtime.model.modules, runtime.config, runtime.groups)
    _, metrics, gradients = train_step(runtime)
    loss, expected = _twin(runtime, folder)
    assert metrics["lm loss"] == pytest.approx(loss, rel=TOLERANCE, abs=1e-6)
    assert largest_error(gradients, dict(expected)) <= TOLERANCE


def _twin(runtime: Runtime, folder: Path) -> tuple[float, Mapping[str, Tensor]]:
    return _cached_twin(folder, all_rollouts(runtime), runtime)


def all_rollouts(runtime: Runtime) -> list[RolloutGroup]:
    """The groups of all replicas."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, rollouts(runtime), group=runtime.groups.gloo_group)
    groups = {group.prompt.uid: group for part in everyone for group in part}
    return list(groups.values())


_TWINS: dict[Path, tuple[float, Mapping[str, Tensor]]] = {}


def _cached_twin(
    folder: Path, groups: Sequence[RolloutGroup], runtime: Runtime
) -> tuple[float, Mapping[str, Tensor]]:
    """The same for all layouts: weights, rows and responses are."""
    if folder not in _TWINS:
        _TWINS[folder] = twin_of(folder, groups, runtime.config)
    return _TWINS[folder]


def twin_of(
    folder: Path,
    groups: Sequence[RolloutGroup],
    config: Config,
    weights: Mapping[str, Tensor] | None = None,
) -> tuple[float, Mapping[str, Tensor]]:
    """Loss and gradients of transformers' model, by the names of the mapping table.

    Args:
        weights: by these names, in place of the folder's.
    """
    source = HfFolder(folder / "hf")
    model = load_model(folder / "hf")
    name = functools.partial(source.family.table_name, "")
    named = {name(n): p for n, p in model.named_parameters()}
    with torch.no_grad():
        for key, value in (weights or {}).items():
            named[key].copy_(value)
    loss = policy_loss(groups, functools.partial(_logprobs, model, source, config))
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in named.items() if p.grad is not None}


def _logprobs(
    model: Any, source: HfFolder, config: Config, prompt: Prompt, response: list[int]
) -> Tensor:
    predicted = their_logits(model, source, config, prompt, response).log_softmax(-1)
    return predicted.gather(1, torch.tensor(response)[:, None])[:, 0]


def their_logits(
    model: Any, source: HfFolder, config: Config, prompt: Prompt, response: list[int]
) -> Tensor:
    """[R, v]: what predicts a response in transformers' model."""
    ids = torch.cat([prompt.token_ids, torch.tensor(response)])
    units = [spec.load(range(spec.num_units)) for spec in prompt.media]
    reference: Reference = loaded(source.family.reference)
    media = reference(model, source, config, prompt, units)
    del media["input_ids"]
    if "mm_token_type_ids" in media:
        kinds = media["mm_token_type_ids"]
        media["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, len(response)))
    if "position_ids" in media:
        before = media["position_ids"]
        after = torch.arange(len(response)) + before[..., -1:] + 1
        media["position_ids"] = torch.cat([before, after], dim=-1)
    logits: Tensor = model(input_ids=ids[None], **media).logits[0]
    return logits[len(prompt.token_ids) - 1 : -1]
