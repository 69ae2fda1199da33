"""Images and videos through all of VILA at several scales, in tiles and pooled, against a twin.

Tower and language model of the twin are transformers' own; what lies between them is written from
its description, in loops. All of it is float64.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from megatron_longrl.cli.conversion.comparison import model_logits
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import Row
from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.models.prompts import prompt_builder
from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.platforms import platform
from tests.parity.comparison import TOLERANCE, assert_close, loaded
from tests.parity.test_qwen_vl_prompts import Letters, write_video
from tests.visual_media import visual

VOCABULARY, HIDDEN, FEATURES = 131, 56, 24
SIDE, GRID = 28, 4  # a tile's pixels and patches
NEW_CODE = {"image_encoder": {"_target_": "llava.model.encoders.BasicImageEncoder"}}
SCALES = {"s2_scales": "28,56,84", "s2_max_split_size": 28}
DYNAMIC_S2 = {"dynamic_s2": True, "image_aspect_ratio": "dynamic_s2", "max_tiles": 12, **SCALES}
KINDS: dict[str, tuple[dict[str, Any], str, list[int]]] = {
    "plain": (NEW_CODE, "mlp_downsample", [96, HIDDEN, HIDDEN]),
    "tiles": (
        {"image_aspect_ratio": "dynamic", "min_tiles": 1, "max_tiles": 6},
        "mlp_downsample_2x2_fix",
        [96, HIDDEN, HIDDEN],
    ),
    "S2": ({"s2": True, **SCALES}, "mlp_downsample_3x3_s2", [648, 216, 72, 24, HIDDEN, HIDDEN]),
    "S2, fine": (
        {"s2": True, "s2_resize_output_to_scale_idx": 1, **SCALES},
        "mlp_downsample_2x2_fix",
        [288, HIDDEN, HIDDEN],
    ),
    "dynamic S2": (
        {**NEW_CODE, **DYNAMIC_S2, "s2_resize_output_to_scale_idx": -1},
        "mlp_downsample",
        [288, HIDDEN, HIDDEN],
    ),
    "dynamic S2, coarse": (
        {**DYNAMIC_S2, "s2_resize_output_to_scale_idx": 1},
        "mlp_downsample_3x3_s2_new",
        [648, 288, 144, 72, 24, HIDDEN, HIDDEN],
    ),
    "pooled": (
        {**NEW_CODE, "video_encoder": {"pool_sizes": [[2, 1, 2]]}},
        "mlp_downsample_2x2_fix",
        [96, HIDDEN, HIDDEN],
    ),
}
"""Settings of the checkpoint, kind of the projector, and widths between its layers."""

MEDIA = {
    "text": ([], []),
    "one wide image": (["wide"], []),
    "one tall image": (["tall"], []),
    "two images": (["wide", "tall"], []),
    "image and video": (["square"], ["video"]),
    "video": ([], ["video"]),
    "two videos": ([], ["video", "tall video"]),
}
"""Images and videos of a prompt."""
VIDEOS = {"video": (9, 60, 34), "tall video": (5, 30, 48)}
"""Frames, width and height."""
SIZES = {"wide": (150, 60), "tall": (40, 110), "square": (64, 64)}
"""Width and height of the images."""
GRIDS = {
    "tiles": {"wide": (1, 3), "tall": (3, 1), "square": (2, 2)},
    "dynamic S2": {"wide": (2, 5), "tall": (6, 2), "square": (3, 3)},
}
"""Rows and columns of the tiles, nearest to the proportions: of at most 6, of 9 to 12."""
GRIDS["dynamic S2, coarse"] = GRIDS["dynamic S2"]


class Twin:
    """The model from Hugging Face's parts and descriptions."""

    def __init__(self, folder: Path, kind: str, vocabulary: int = VOCABULARY) -> None:
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            SiglipVisionConfig,
            SiglipVisionModel,
        )

        settings, projector, widths = KINDS[kind]
        torch.manual_seed(11)
        self.kind, self.settings = kind, settings
        self.llm: Any = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                "qwen2",
                vocab_size=vocabulary,
                hidden_size=HIDDEN,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=14,
                num_key_value_heads=2,
                max_position_embeddings=512,
                rms_norm_eps=1e-5,
                tie_word_embeddings=False,
            )
        ).eval()
        self.tower: Any = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=FEATURES,
                intermediate_size=40,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=SIDE,
                patch_size=SIDE // GRID,
            )
        ).eval()
        for model, part in ((self.llm, "llm"), (self.tower, "vision_tower")):
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, mean=0.05, std=0.2)
            model.save_pretrained(folder / part)
        self.merged = 3 if "3x3" in projector else 2
        self.linear: list[tuple[Tensor, Tensor]] = []
        self.norms: list[tuple[Tensor, Tensor]] = []
        weights: dict[str, Tensor] = {}
        place = 1
        for number, (inner, outer) in enumerate(pairwise(widths)):
            if number < len(widths) - 2:
                pair = (1 + 0.2 * torch.randn(inner), 0.2 * torch.randn(inner))
                self.norms.append(pair)
                weights[f"layers.{place}.weight"], weights[f"layers.{place}.bias"] = pair
                place += 1
            pair = (torch.randn(outer, inner) / inner**0.5, 0.2 * torch.randn(outer))
            self.linear.append(pair)
            weights[f"layers.{place}.weight"], weights[f"layers.{place}.bias"] = pair
            place += 2  # a GELU behind it
        (folder / "mm_projector").mkdir()
        save_file(weights, folder / "mm_projector/model.safetensors")
        (folder / "mm_projector/config.json").write_text(
            json.dumps({"mm_projector_type": projector})
        )
        top = {"model_type": "llava_llama", "mm_vision_select_layer": -2, **settings}
        (folder / "config.json").write_text(json.dumps(top))
        self.llm, self.tower = self.llm.double(), self.tower.double()

    def features(self, tile: Tensor) -> Tensor:
        """[3, S, S] -> [g, g, c] of the last layer but one."""
        found = self.tower(tile[None], output_hidden_states=True).hidden_states[-2][0]
        return found.view(GRID, GRID, FEATURES)

    def project(self, picture: Tensor) -> Tensor:
        """[g, g, c] -> [t, t, h]: blocks of patches side by side, row by row, zeros outside."""
        grid, block, channels = len(picture), self.merged, picture.shape[-1]
        tokens = ceil(grid / block)
        padded = torch.zeros(tokens * block, tokens * block, channels, dtype=torch.double)
        padded[:grid, :grid] = picture
        rows = []
        for row in range(tokens):
            for column in range(tokens):
                x = torch.cat(
                    [
                        padded[row * block + r, column * block + c]
                        for r in range(block)
                        for c in range(block)
                    ]
                )
                for number, (weight, bias) in enumerate(self.linear):
                    if number:
                        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
                    if number < len(self.norms):
                        x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
                        x = x * self.norms[number][0].double() + self.norms[number][1].double()
                    x = weight.double() @ x + bias.double()
                rows.append(x)
        return torch.stack(rows).view(tokens, tokens, HIDDEN)

    def square(self, pixels: Tensor) -> Tensor:
        """Tokens of a frame or squeezed image [3, R, R], [t, t, h]."""
        if self.settings.get("s2"):
            pictures = []
            for side in (1, 2, 3):
                copy = F.interpolate(pixels[None], size=(SIDE * side,) * 2, mode="bicubic")[0]
                tiles = [
                    [
                        self.features(copy[:, r * SIDE : (r + 1) * SIDE, c * SIDE : (c + 1) * SIDE])
                        for c in range(side)
                    ]
                    for r in range(side)
                ]
                pictures.append(pasted(tiles))
            return self.project(self.joined(pictures))
        picture = self.features(pixels)
        if self.settings.get("dynamic_s2"):
            picture = torch.cat([picture] * 3, dim=-1)
        return self.project(picture)

    def joined(self, pictures: list[Tensor]) -> Tensor:
        size = pictures[self.settings.get("s2_resize_output_to_scale_idx", 0)].shape
        return torch.cat([area(picture, size[0], size[1]) for picture in pictures], dim=-1)

    def image_in_tiles(self, tiles: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens of the only image under dynamic S2: its tiles at three scales, [T, 3, S, S]."""
        pictures, first = [], 0
        for rows, columns in ((1, 1), (2, 2), grid):
            found = [
                [self.features(tiles[first + r * columns + c]) for c in range(columns)]
                for r in range(rows)
            ]
            pictures.append(pasted(found))
            first += rows * columns
        assert first == len(tiles)
        picture = self.joined(pictures)
        return pasted(
            [
                [
                    self.project(picture[r : r + GRID, c : c + GRID])
                    for c in range(0, picture.shape[1], GRID)
                ]
                for r in range(0, picture.shape[0], GRID)
            ]
        )

    def units(self, name: str, is_alone: bool, pixels: Tensor) -> list[Tensor]:
        """Tokens [n, h] between the newlines."""
        if name in SIZES and is_alone and "dynamic S2" in self.kind:
            whole = self.image_in_tiles(pixels, GRIDS[self.kind][name])
            return [whole.flatten(0, 1)]
        frames = [self.square(frame) for frame in pixels]
        if name in VIDEOS and self.kind == "pooled":
            pairs = [(a + b) / 2 for a, b in zip(frames[::2], frames[1::2], strict=True)]
            frames = [(pair[:, ::2] + pair[:, 1::2]) / 2 for pair in pairs]
        return [frame.flatten(0, 1) for frame in frames]

    def logits(
        self,
        text: Tokenizer,
        names: list[str],
        question: str,
        pixels: list[Tensor],
        response: Sequence[int] = (),
    ) -> Tensor:
        """[P + R, v] of the prompt that VILA would make, and a response behind it."""

        def embed(ids: Sequence[int]) -> Tensor:
            return self.llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))

        parts = []
        is_alone = len([name for name in names if name in SIZES]) == 1
        for name, frames in zip(names, pixels, strict=True):
            for unit in self.units(name, is_alone, frames.double()):
                parts += [unit, embed(text.encode("\n"))]
                if self.kind == "tiles" and name in SIZES and is_alone:
                    parts.append(embed(text.encode("\n")))  # every tile is an image on a line
        parts += [embed(text.encode(question + "\n")), embed(response)]
        return self.llm(inputs_embeds=torch.cat(parts)[None]).logits[0]


def pasted(tiles: list[list[Tensor]]) -> Tensor:
    """Rows of squares -> one picture."""
    return torch.cat([torch.cat(row, dim=1) for row in tiles], dim=0)


def area(picture: Tensor, rows: int, columns: int) -> Tensor:
    """Averages of what lies under every new place."""
    height, width = picture.shape[:2]
    result = torch.empty(rows, columns, picture.shape[-1], dtype=torch.double)
    for row in range(rows):
        top, bottom = floor(row * height / rows), ceil((row + 1) * height / rows)
        for column in range(columns):
            left, right = floor(column * width / columns), ceil((column + 1) * width / columns)
            result[row, column] = picture[top:bottom, left:right].mean(dim=(0, 1))
    return result


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    platform.prepare()
    yield
    destroy_parallel()


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """The twin, and ours with the weights of its folder."""
    folder = tmp_path_factory.mktemp("vila")
    twin = Twin(folder, request.param)
    config, _, model = loaded(folder, video_frames=6, chat_template="plain")
    return twin, config, model


def write_media(folder: Path) -> dict[str, Path]:
    """All images and videos, by name."""
    generator = np.random.default_rng(3)
    found = {name: write_video(folder / f"{name}.webm", *size) for name, size in VIDEOS.items()}
    for name, (width, height) in SIZES.items():
        coarse = generator.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        found[name] = folder / f"{name}.png"
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        smooth.save(found[name])
    return found


def row_of(media: str, files: Mapping[str, Path]) -> Row:
    images, videos = MEDIA[media]
    return Row(
        problem_id=media,
        problem="What happens here?",
        answer="A",
        reasoning="",
        videos=tuple(files[name] for name in videos),
        problem_type="general",
        data_type="video" if videos else "image" if images else "text",
        source=media,
        images=tuple(files[name] for name in images),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.mark.parametrize("media", MEDIA)
@torch.no_grad()
def test_logits_of_a_whole_prompt(media, both, files):
    twin, config, model = both
    row, text = row_of(media, files), Letters()
    prompt = prompt_builder(config, text, "sft").build(row)
    pixels = [spec.frames() for spec in visual(prompt)]
    names = [name for group in MEDIA[media] for name in group]
    theirs = twin.logits(text, names, row.problem, pixels).float()
    units = [spec.load(range(spec.num_units)) for spec in prompt.media]
    assert_close(model_logits(model, config.parallel, config.model, prompt, units), theirs)
    if not pixels:
        return
    # The pictures are seen.
    changed = twin.logits(text, names, row.problem, [p * 0.5 for p in pixels]).float()
    assert (changed - theirs).abs().max() > 100 * TOLERANCE


def tiles_of(path: Path, grids: list[tuple[int, int]]) -> Tensor:
    """As Pillow resizes and cuts, float in -1..1."""
    found = []
    with Image.open(path) as image:
        for rows, columns in grids:
            whole = image.convert("RGB").resize(
                (columns * SIDE, rows * SIDE), Image.Resampling.BICUBIC
            )
            for row in range(rows):
                for column in range(columns):
                    box = (column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE)
                    found.append(np.asarray(whole.crop(box)))
    return torch.tensor(np.stack(found)).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("media", ["one wide image", "one tall image"])
def test_pixels_of_tiles(media, both, files):
    twin, config, _ = both
    if twin.kind not in GRIDS:
        pytest.skip("no tiles")
    prompt: Prompt = prompt_builder(config, Letters(), "sft").build(row_of(media, files))
    ((name,), _) = MEDIA[media]
    grid = GRIDS[twin.kind][name]
    order = [grid, (1, 1)] if twin.kind == "tiles" else [(1, 1), (2, 2), grid]
    expected = tiles_of(files[name], order)
    (spec,) = visual(prompt)
    ours = spec.frames()
    assert ours.shape == expected.shape
    levels = (ours - expected).abs() * 127.5
    assert (levels <= 1.02).float().mean() >= 0.95 and levels.max() <= 2.02
    # Any of them can be had alone, as a rank that owns only these does.
    some = [len(expected) - 1, 0, 2]
    assert torch.equal(spec.frames(some), ours[some])
