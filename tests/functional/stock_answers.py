"""What transformers itself makes of rows: prompts by its chat templates and processors, and greedy
responses by its ``generate``.

``python -m tests.functional.stock_answers FOLDER ROWS FILE`` writes them as JSON: for every row the
prompt's tokens, its text, and the tokens of the response. Processors of Qwen-VL need torchvision.

VILA is not in transformers: a row with media is expanded as here, and answered by transformers'
tower and language model with our projector between them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import torch
from PIL import Image

from tests.visual_media import visual

TOKENS = 16
"""Longest response."""
FRAMES_PER_SECOND, MOST_FRAMES = 2.0, 64
"""Of a video, as by default."""
GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}

Row = Mapping[str, Any]


def main(folder: Path, rows: Path, written: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    if settings["model_type"] == "qwen2_5_omni":
        answerer: Any = Omni(folder)
    elif "vision_config" in settings:
        answerer = QwenVL(folder)
    elif settings["model_type"] == "llava_llama":
        answerer = Vila(folder)
    else:
        answerer = Text(folder)
    answers = []
    for line in rows.read_text(encoding="utf-8").splitlines():
        ids, response = answerer.answer(json.loads(line), rows.parent)
        text = answerer.tokenizer.decode(ids) if ids else None
        told = answerer.tokenizer.decode(response)
        answers.append({"prompt": ids, "text": text, "response": response, "told": told})
    written.write_text(json.dumps(answers), encoding="utf-8")


class Text:
    """A language model."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(self, row: Row, media: Path) -> tuple[list[int], list[int]]:
        """Tokens of the prompt and of the response."""
        messages = [{"role": "user", "content": row["problem"]}]
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = inputs["input_ids"][0].tolist()
        made = self.model.generate(**inputs, **GREEDY, max_new_tokens=TOKENS)
        return ids, made[0, len(ids) :].tolist()


class QwenVL:
    """A model of videos and images, with its processor."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(folder)
        self.tokenizer = self.processor.tokenizer
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(self, row: Row, media: Path) -> tuple[list[int], list[int]]:
        """Tokens of the prompt and of the response."""
        images = [Image.open(media / name).convert("RGB") for name in row.get("images", ())]
        videos = [decoded(media / name) for name in row.get("videos", ())]
        content = [{"type": "image"}] * len(images) + [{"type": "video"}] * len(videos)
        messages = [
            {"role": "user", "content": [*content, {"type": "text", "text": row["problem"]}]}
        ]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        given: dict[str, Any] = {"images": images} if images else {}
        if videos:
            taken = [fetched(told) for _, told in videos]
            for (_, told), indices in zip(videos, taken, strict=True):
                told.frames_indices = indices
            given["videos"] = [frames[n] for (frames, _), n in zip(videos, taken, strict=True)]
            given |= {"video_metadata": [told for _, told in videos], "do_sample_frames": False}
        inputs = self.processor(text=[text], return_tensors="pt", **given)
        ids = inputs["input_ids"][0].tolist()
        made = self.model.generate(**inputs, **GREEDY, max_new_tokens=TOKENS)
        return ids, made[0, len(ids) :].tolist()


class Omni:
    """A model that sees and hears, with its processor."""

    def __init__(self, folder: Path) -> None:
        from transformers import (
            AutoConfig,
            AutoProcessor,
            Qwen2_5OmniThinkerForConditionalGeneration,
        )

        self.processor = AutoProcessor.from_pretrained(folder)
        self.tokenizer = self.processor.tokenizer
        settings = AutoConfig.from_pretrained(folder).thinker_config
        self.model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            folder, config=settings, dtype=torch.float32
        ).eval()

    def answer(self, row: Row, media: Path) -> tuple[list[int], list[int]]:
        """Tokens of the prompt and of the response."""
        sounds = [samples_of(media / name) for name in row.get("audios", ())]
        videos = [decoded(media / name) for name in row.get("videos", ())]
        content = [{"type": "audio"}] * len(sounds) + [{"type": "video"}] * len(videos)
        messages = [
            {"role": "user", "content": [*content, {"type": "text", "text": row["problem"]}]}
        ]
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        given: dict[str, Any] = {}
        with_sound = bool(row.get("audio_in_video"))
        if videos:
            # The processor takes every film for one of two frames a second, unless it is told.
            ((frames, told),) = videos
            taken = fetched(told)
            given["videos"] = [frames[taken]]
            given["videos_kwargs"] = {
                "do_sample_frames": False,
                "fps": len(taken) / told.duration,
                "use_audio_in_video": with_sound,
            }
            if with_sound:
                whole = samples_of(media / row["videos"][0])
                sounds.append(whole[: round(told.duration * 16_000)])
        if sounds:
            given["audio"] = sounds
        inputs = self.processor(text=[text], return_tensors="pt", **given)
        ids = inputs["input_ids"][0].tolist()
        made = self.model.generate(
            **inputs, **GREEDY, max_new_tokens=TOKENS, use_audio_in_video=with_sound
        )
        return ids, made[0, len(ids) :].tolist()


def samples_of(path: Path) -> Any:
    """Sound of one channel at 16,000 samples a second, read plainly."""
    import numpy as np

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    samples = np.concatenate(frames, axis=1)[0]
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768
    return samples.astype(np.float32)


class Vila:
    """Three folders. Of a row with media the prompt's tokens are not told."""

    def __init__(self, folder: Path) -> None:
        from megatron_longrl.config import Config
        from megatron_longrl.conversion.hf import HfFolder
        from megatron_longrl.data.tokenizer import build_tokenizer
        from megatron_longrl.models.prompts import prompt_builder

        self._language_model = Text(folder / "llm")
        self.tokenizer = self._language_model.tokenizer
        self._source = HfFolder(folder)
        fields = self._source.config_fields()
        self._config = Config.of(
            {
                **fields,
                "seq_length": fields["max_position_embeddings"],
                "video_fps": FRAMES_PER_SECOND,
                "video_frames": MOST_FRAMES,
            }
        )
        tokenizer = build_tokenizer(
            self._config.data.tokenizer_type, self._config.data.tokenizer_model
        )
        self._builder = prompt_builder(self._config, tokenizer, "sft")

    def answer(self, row: Row, media: Path) -> tuple[list[int] | None, list[int]]:
        """Tokens of the prompt and of the response."""
        from megatron_longrl.data.rows import load_rows
        from megatron_longrl.models.hf_reference import load_model
        from megatron_longrl.models.vila.reference import prompt_embeddings

        if not ("videos" in row or "images" in row):
            return self._language_model.answer(row, media)
        path = media / "one_row.jsonl"
        path.write_text(json.dumps(row), encoding="utf-8")
        (loaded,) = load_rows([str(path)], "train.jsonl")
        path.unlink()
        prompt = self._builder.build(loaded)
        pixels = [spec.frames() for spec in visual(prompt)]
        llm = load_model(self._source.folder / "llm")
        embeddings = prompt_embeddings(llm, self._source, self._config, prompt, pixels)
        made = llm.generate(
            inputs_embeds=embeddings[None],
            attention_mask=torch.ones(1, len(embeddings), dtype=torch.long),
            **GREEDY,
            max_new_tokens=TOKENS,
        )
        return None, made[0].tolist()


def decoded(path: Path) -> tuple[Any, Any]:
    """All frames of a video, and what a reader of files says of it.

    They are decoded as here: decoders differ by a grey level, which changes a choice of a model of
    random weights. What becomes of them is the processor's.
    """
    import numpy as np
    from transformers.video_utils import VideoMetadata

    from megatron_longrl.cli.frames import main as write_frames

    with TemporaryDirectory() as folder:
        write_frames([str(path), "--video-frames", "10000", "--output", folder])
        pictures = sorted(Path(folder).glob("*.png"))
        frames = np.stack([np.asarray(Image.open(picture)) for picture in pictures])
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 0)
    return frames, VideoMetadata(
        total_num_frames=len(frames), fps=rate, duration=len(frames) / rate
    )


def fetched(told: Any) -> list[int]:
    """The frames that ``fetch_video`` of qwen-vl-utils takes of a video: whole pairs, at least
    four, spread from the first to the last."""
    total = told.total_num_frames
    wanted = min(max(told.duration * FRAMES_PER_SECOND, 4), MOST_FRAMES, total)
    return torch.linspace(0, total - 1, 2 * int(wanted // 2)).round().long().tolist()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
