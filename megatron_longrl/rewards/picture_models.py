"""Rewards of pictures by models of the CLIP architecture, which are read from local folders as
transformers saves them: agreement with the prompt, human preference, aesthetics.

A film has the mean score of its frames. The process that scores loads a model once.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longrl.rewards.pictures import frames_of
from megatron_longrl.rewards.result import RewardError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from megatron_longrl.experience.reward_input import RewardInput

CLIP_SCALE = 2.5
"""The factor of CLIPScore, https://arxiv.org/abs/2104.08718, equation 1."""
PICK_SCALE = 26.0
"""Flow-GRPO divides PickScores by it, which brings those of good pictures near 1."""
_MODELS_KEPT = 4
_LAYER = re.compile(r"layers\.(\d+)\.(weight|bias)")


def clip_score(sample: RewardInput, model: str, device: str) -> float:
    """CLIPScore, https://arxiv.org/abs/2104.08718: 2.5 times the cosine of the embeddings of
    picture and prompt, and 0 where it is negative.

    Args:
        model: the folder of a CLIP model.
        device: ``cpu`` or ``cuda``.

    Raises:
        RewardError: the model cannot be loaded, or the sample has no picture.
    """
    cosines = _clip(model, device).cosines(frames_of(sample), sample.question)
    return float((CLIP_SCALE * cosines.clamp(min=0)).mean())


def pick_score(sample: RewardInput, model: str, device: str) -> float:
    """PickScore, https://arxiv.org/abs/2305.01569: the scaled cosine of the embeddings of picture
    and prompt in a CLIP model of human preferences, divided by 26 as Flow-GRPO does.

    Args: as :func:`clip_score`.
    """
    clip = _clip(model, device)
    cosines = clip.cosines(frames_of(sample), sample.question)
    return float(cosines.mean() * clip.logit_scale / PICK_SCALE)


def hps(sample: RewardInput, model: str, device: str) -> float:
    """Human Preference Score v2, https://arxiv.org/abs/2306.09341: the cosine of the embeddings of
    picture and prompt in its model, which is converted to transformers' CLIP.

    Args: as :func:`clip_score`.
    """
    return float(_clip(model, device).cosines(frames_of(sample), sample.question).mean())


def aesthetic(sample: RewardInput, model: str, head: str, device: str) -> float:
    """LAION's aesthetic score, about 1 to 10: linear layers over the normalised embedding of the
    picture, https://github.com/christophschuhmann/improved-aesthetic-predictor.

    Args:
        model: the folder of the CLIP model for whose embeddings the head was trained.
        head: a safetensors file with ``layers.N.weight`` and ``layers.N.bias``.
        device: ``cpu`` or ``cuda``.
    """
    values = _clip(model, device).of_frames(frames_of(sample))
    for weight, bias in _head(head, device):
        if weight.shape[1] != values.shape[1]:
            raise RewardError(
                f"aesthetic_head {head} has a layer for {weight.shape[1]} channels, and gets "
                f"{values.shape[1]}: is it the head for this --clip-model?"
            )
        values = values @ weight.T + bias
    return float(values.mean())


def prepare_model(model: str, *others: str) -> None:
    """Load a model before it is first used.

    Args:
        others: the arguments of the reward behind the model; the last one is the device.
    """
    *head, device = others
    _clip(model, device)
    for file in head:
        _head(file, device)


def folder_problem(name: str, folder: str) -> str | None:
    """The reason why a folder holds no CLIP model; None where it does, as far as its files say.

    Args:
        name: the field that names the folder.
    """
    config = Path(folder) / "config.json"
    remedy = "give a folder as transformers saves CLIP, with its processor"
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except OSError:
        return f"{name}: {config} cannot be read: {remedy}"
    except ValueError:
        return f"{name}: {config} is no JSON: {remedy}"
    kind = found.get("model_type") if isinstance(found, dict) else None
    if kind != "clip":
        return f"{name}: {config} has model_type {kind!r}, not 'clip': {remedy}"
    if not list(Path(folder).glob("*.safetensors")):
        return f"{name}: {folder} has no .safetensors file, and others are not read: {remedy}"
    if not (Path(folder) / "preprocessor_config.json").is_file():
        return f"{name}: {folder} has no preprocessor_config.json: {remedy}"
    return None


@dataclass(frozen=True)
class _Clip:
    """A CLIP model with its processors."""

    model: Any
    tokenizer: Any
    pictures: Any
    device: str

    @property
    def logit_scale(self) -> float:
        return float(self.model.logit_scale.detach().exp())

    def cosines(self, frames: np.ndarray, prompt: str) -> Tensor:
        """[frames]: the cosine of the embeddings of each frame and the prompt, in float32."""
        return self.of_frames(frames) @ self.of_text(prompt)

    def of_frames(self, frames: np.ndarray) -> Tensor:
        """[frames, channels]: embeddings of length 1.

        Args:
            frames: uint8 [frames, height, width, 3].
        """
        import torch

        given = self.pictures(images=list(frames), return_tensors="pt").to(self.device)
        with torch.inference_mode():
            return _normalised(self.model.get_image_features(**given))

    def of_text(self, prompt: str) -> Tensor:
        """[channels]: the embedding of length 1; a long text is cut to the model's tokens."""
        import torch

        length = self.model.config.text_config.max_position_embeddings
        given = self.tokenizer(prompt, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            return _normalised(self.model.get_text_features(**given.to(self.device)))[0]


def _normalised(output: Any) -> Tensor:
    features: Tensor = getattr(output, "pooler_output", output).float()
    return features / features.norm(dim=-1, keepdim=True)


@lru_cache(maxsize=_MODELS_KEPT)
def _clip(folder: str, device: str) -> _Clip:
    problem = folder_problem("the model", folder)
    if problem:
        raise RewardError(problem)
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    place = _place(device)
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # The scores of published models come from Pillow's resizing.
        pictures = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise RewardError(f"the CLIP model in {folder} cannot be loaded: {line}") from None
    return _Clip(model.to(place).eval(), tokenizer, pictures, place)


@lru_cache(maxsize=_MODELS_KEPT)
def _head(file: str, device: str) -> list[tuple[Tensor, Tensor]]:
    """Weights [out, in] and biases [out] of the layers, in their order."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file, device=_place(device))
    except (OSError, SafetensorError) as error:
        raise RewardError(f"aesthetic_head {file} is no safetensors file: {error}") from None
    found = [match for name in tensors if (match := _LAYER.fullmatch(name))]
    numbers = sorted({int(match[1]) for match in found})
    if not numbers or len(found) != len(tensors) or len(found) != 2 * len(numbers):
        raise RewardError(
            f"aesthetic_head {file} has not the tensors layers.N.weight and layers.N.bias of "
            "linear layers alone"
        )
    return [
        (tensors[f"layers.{n}.weight"].float(), tensors[f"layers.{n}.bias"].float())
        for n in numbers
    ]


def _place(device: str) -> str:
    """The device of torch; each rank's processes use the rank's own GPU."""
    return device if device == "cpu" else f"{device}:{os.environ.get('LOCAL_RANK', 0)}"
