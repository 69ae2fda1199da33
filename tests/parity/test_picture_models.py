"""Rewards of pictures by CLIP models against transformers' own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.rewards.picture_models import aesthetic
from megatron_longrl.rewards.pictures import packed
from megatron_longrl.rewards.registry import REWARDS
from megatron_longrl.rewards.result import RewardError, RewardResult
from megatron_longrl.rewards.rules import model_rules
from megatron_longrl.rewards.scorer import Scorer
from tests.unit.rewards.samples import make_sample

TOLERANCE = 1e-5
WIDTH, TOKENS = 16, 8
WORDS = ("<pad>", "<bos>", "<unk>", "<eos>", "a", "red", "blue", "square", "at", "the", "top")
PROMPT = "a red square at the top the top the top"
"""Longer than the model's tokens."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny CLIP model, its tokenizer and its processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPConfig,
        CLIPModel,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    shared = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
    }
    special = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    text = {**shared, **special, "vocab_size": len(WORDS), "max_position_embeddings": TOKENS}
    vision = {**shared, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    ).save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three linear layers, numbered as a Sequential with dropout between them numbers them."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("head") / "head.safetensors"
    layers = {0: nn.Linear(WIDTH, 8), 2: nn.Linear(8, 4), 10: nn.Linear(4, 1)}
    tensors = {
        f"layers.{number}.{name}": value.detach()
        for number, layer in layers.items()
        for name, value in layer.named_parameters()
    }
    save_file(tensors, file)
    return file


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 40, 56, 3)).astype(np.uint8)


def theirs(clip: Path, frames: np.ndarray) -> tuple[Tensor, Tensor, Any]:
    """Normalised embeddings of the frames, logits of each for the prompt, and the model."""
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(clip).eval()
    text = AutoTokenizer.from_pretrained(clip)(
        PROMPT, truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    shown = CLIPImageProcessorPil.from_pretrained(clip)(list(frames), return_tensors="pt")
    with torch.no_grad():
        found = model(**text, **shown)
    return found.image_embeds, found.logits_per_image[:, 0], model


def scored(frames: np.ndarray, **settings: Any) -> list[RewardResult]:
    """The results of all rewards of a section, each computed by a process of its own."""
    scorer = Scorer(RewardSection(**settings, reward_workers=1))
    sample = make_sample(question=PROMPT).with_picture(packed(frames), is_film=len(frames) > 1)
    try:
        return [scorer.result(scorer.score(name, sample))[0] for name in settings["rewards"]]
    finally:
        scorer.close()


@pytest.mark.parametrize("frames", [1, 3])
def test_scores_are_those_of_transformers(frames: int, clip: Path, head: Path) -> None:
    shown = pictures(frames)
    embeddings, logits, model = theirs(clip, shown)
    scale = float(model.logit_scale.detach().exp())
    from safetensors.torch import load_file

    tensors = load_file(head)
    values = embeddings
    for number in (0, 2, 10):
        values = nn.functional.linear(
            values, tensors[f"layers.{number}.weight"], tensors[f"layers.{number}.bias"]
        )
    expected = {
        "clip_score": float((2.5 * (logits / scale).clamp(min=0)).mean()),
        "pick_score": float(logits.mean()) / 26,
        "hps": float(logits.mean()) / scale,
        "aesthetic": float(values.mean()),
    }
    folders = dict.fromkeys(("clip_model", "pick_score_model", "hps_model"), str(clip))
    found = scored(shown, rewards=[*expected], **folders, aesthetic_head=str(head))
    for (name, value), result in zip(expected.items(), found, strict=True):
        assert result.score == pytest.approx(value, abs=TOLERANCE), (name, result.error)


def test_a_model_that_is_not_there_is_told(clip: Path, tmp_path: Path) -> None:
    (told,) = model_rules(RewardSection(rewards=["clip_score"]))
    assert told == "rewards has clip_score, but clip_model is not set: give --clip-model ..."
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    section = RewardSection(
        rewards=["pick_score", "aesthetic"],
        pick_score_model=str(tmp_path),
        clip_model=str(clip),
        aesthetic_head=str(tmp_path / "none"),
    )
    head, folder = model_rules(section)
    assert head == f"aesthetic_head: {tmp_path / 'none'} is no file"
    assert folder.startswith(
        f"pick_score_model: {tmp_path / 'config.json'} has model_type 'siglip'"
    )
    sample = make_sample(question=PROMPT).with_picture(packed(pictures(1)[0]))
    save_file({"layers.0.weight": torch.ones(1, 7), "layers.0.bias": torch.ones(1)},
              tmp_path / "head.safetensors")  # fmt: skip
    with pytest.raises(RewardError, match="has a layer for 7 channels, and gets 16"):
        aesthetic(sample, str(clip), str(tmp_path / "head.safetensors"), "cpu")
    assert not [*model_rules(RewardSection(rewards=["hps"], hps_model=str(clip)))]
    assert REWARDS.find("hps").reads == "picture"
