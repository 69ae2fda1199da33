"""Rows as nobody means them: ``python -m tests.fuzz.rows [NUMBER] [SEED]``.

Each row is loaded, checked and expanded as training does it, by two tokenizers. Whatever it holds,
it gives a prompt or the row's own error with its file and line. The exit status is 1 where
something else came out.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_longrl.config import Config
from megatron_longrl.data.conversation import Conversation
from megatron_longrl.data.prompts import PromptBuilder
from megatron_longrl.data.rows import RowError, RowProblem, load_rows
from megatron_longrl.data.tokenizer import build_tokenizer, train_sentencepiece
from megatron_longrl.models.qwen_vl.layout import Qwen3Layout
from megatron_longrl.models.vila.layout import VilaLayout
from tests.real_tokenizers import write as write_tokenizer
from tests.unit.data.video_files import write as write_video

SECONDS = 10.0
"""That one row may take."""
MODEL = {
    "num_layers": 1,
    "hidden_size": 32,
    "ffn_hidden_size": 32,
    "num_attention_heads": 2,
    "seq_length": 300,
    "vision_patch_size": 4,
    "vision_hidden_size": 32,
    "vision_num_layers": 1,
    "vision_num_attention_heads": 2,
    "vision_ffn_hidden_size": 32,
    "video_frames": 4,
}
QWEN = {
    "model_family": "qwen3_vl",
    "vision_merge_size": 2,
    "vision_temporal_patch_size": 2,
    "video_min_pixels": 64,
    "video_max_pixels": 4096,
    "image_min_pixels": 64,
    "image_max_pixels": 1024,
}
VILA = {"vision_image_size": 32, "vision_patch_size": 8}

WORDS = (
    *("Where is the ball?", "A", "B. left", "\n", " ", "", "<video>", "<image>", "<|video_pad|>"),
    *("<|im_end|>", "<|im_start|>", "<|endoftext|>", "</s>", "<think>", "</think>", "<answer>"),
    *(
        "</answer>",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "{question}",
        "%s",
        "\\boxed{A}",
        "\ue000",
        "\ue0000",
    ),
    *("\0", "\ud800", "\udfff", "\ufeff", "\u2028", "\x1b[31m", "\x85", "é", "e\u0301", "球", "😀"),
    *("\u202e", "\ufffd", "\uffff", "\U0010ffff", "ﷺ", "\u2581", "a" * 300, "9" * 400, "\r\n\t"),
)
NAMES = (
    *("clip.webm", "picture.png", "gone.mp4", ".", "..", "/", "/dev/null", "/dev/zero", "a\0b"),
    *("\ud800.mp4", "x" * 300, "https://a.org/b.mp4", "file:///gone.mp4", "text.txt", "", " ", "~"),
    *("clip.webm/x", "loop", "/proc/self/mem", "pipe", "a\nb.mp4", "CLIP.WEBM"),
)
FIELDS = (
    *("problem_id", "problem", "question", "prompt", "answer", "solution", "ground_truth"),
    *(
        "reasoning",
        "videos",
        "video",
        "images",
        "image",
        "data_type",
        "problem_type",
        "more",
        "\ud800",
    ),
)


def value(random_: random.Random, depth: int = 0) -> Any:
    """Something that JSON may hold."""
    kinds: list[Callable[[], Any]] = [
        lambda: text(random_),
        lambda: random_.choice([None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 1e308]),
        lambda: random_.randint(-(10**30), 10**30),
        lambda: random_.choice(NAMES),
    ]
    if depth < 4:
        kinds += [
            lambda: [value(random_, depth + 1) for _ in range(random_.randint(0, 3))],
            lambda: {
                text(random_): value(random_, depth + 1) for _ in range(random_.randint(0, 3))
            },
        ]
    return random_.choice(kinds)()


def text(random_: random.Random) -> str:
    """Words, some of which break something."""
    return "".join(random_.choice(WORDS) for _ in range(random_.randint(0, 6)))


def line(random_: random.Random) -> bytes:
    """A row, more or less."""
    row: dict[str, Any] = {"problem": "Where?", "answer": "A"}
    if random_.random() < 0.5:
        row["videos"] = random_.choice(["clip.webm", ["clip.webm"] * random_.randint(1, 3)])
    if random_.random() < 0.2:
        row["images"] = "picture.png"
    for _ in range(random_.randint(0, 3)):
        name = random_.choice(FIELDS)
        is_path = name.startswith(("video", "image")) and random_.random() < 0.7
        row[name] = random_.choice(NAMES) if is_path else value(random_)
    for name in ("problem", "reasoning", "answer"):
        if random_.random() < 0.3:
            row[name] = text(random_)
    if random_.random() < 0.1:
        row.pop(random_.choice(list(row)))
    written = json.dumps(row, ensure_ascii=random_.random() < 0.5).encode(errors="surrogatepass")
    return broken(random_, written) if random_.random() < 0.2 else written.replace(b"\n", b" ")


def broken(random_: random.Random, written: bytes) -> bytes:
    """Bytes that are changed, cut, doubled, or replaced by what parsers fear."""
    at = random_.randrange(len(written))
    depth = random_.choice([10, 100, 1000, 100_000])
    choices = [
        written[:at],
        written[:at] + bytes([random_.randrange(256)]) + written[at + 1 :],
        written + written,
        b"[" * depth,
        b'{"problem": "a", "answer": "b", "x": ' + b"[" * depth + b"]" * depth + b"}",
        b'{"problem": "a", "answer": ' + b"7" * random_.choice([10, 4300, 4301, 9000]) + b"}",
        b'{"problem": "a", "answer": 1e' + b"9" * random_.randint(1, 400) + b"}",
        b'{"a": 1, "a": {}, "problem": "a", "answer": "b"}',
        b"\xff\xfe" + written,
        b"\xef\xbb\xbf" + written,
    ]
    return random_.choice(choices).replace(b"\n", b" ")


def write_media(folder: Path) -> None:
    """What some of the names name."""
    from PIL import Image

    write_video(folder / "clip.webm", "libvpx-vp9", 5)
    Image.new("RGB", (20, 30)).save(folder / "picture.png")
    (folder / "text.txt").write_text("no video")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")


def builders(folder: Path) -> list[PromptBuilder]:
    """A Qwen-VL and a VILA, whose templates know media and do not."""
    texts = ["<|im_start|>user\nWhere is the ball?<|im_end|>\n"]
    trained = train_sentencepiece(texts, folder / "t", 330)
    found = []
    for fields, layout_of, tokenizer in (
        (
            QWEN,
            Qwen3Layout,
            build_tokenizer("HuggingFaceTokenizer", write_tokenizer(folder / "hf", "qwen3-vl")),
        ),
        (VILA, VilaLayout, build_tokenizer("SentencePieceTokenizer", trained)),
    ):
        config = Config.model_validate({**MODEL, **fields})
        layout = layout_of(config, tokenizer)
        conversation = Conversation(tokenizer, layout, prompt_template="think-answer")
        plain: dict[str, Any] = {"max_tokens": 300, "max_frames": 4, "fps": None}
        found.append(
            PromptBuilder(tokenizer, layout, conversation=conversation, demonstrates=True, **plain)
        )
    return found


def fuzz(number: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """What came out how often, and what should not have."""
    write_media(folder)
    made = builders(folder)
    random_ = random.Random(seed)
    lines = [line(random_) for _ in range(number)]
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" + b'{"problem": "a", "answer": "b"}')
    counts: Counter[str] = Counter()
    problems: list[RowProblem] = []
    rows = load_rows([path], problems=problems)
    counts["refused"] = len(problems)
    wrong = [str(p) for p in problems if p.place[0] != str(path) or not 0 < p.place[1] <= number]
    for row in rows:
        for builder in made:
            began = time.monotonic()
            try:
                found = builder.problem(row)
                prompt = builder.build(row)
                mask = int(prompt.media_mask.sum())
                if found is not None:
                    wrong.append(f"{row.source}: built, though {found}")
                if mask != sum(prompt.media_lengths) or len(prompt.videos) != len(row.media):
                    wrong.append(f"{row.source}: {mask} slots of {len(prompt.videos)} media")
                builder.shown(prompt)
                builder.response_ids(row)
                counts["built"] += 1
            except RowError as error:
                counts["skipped"] += 1
                if not str(error).startswith(str(path)) or "\n" in str(error):
                    wrong.append(f"{row.source}: {error}")
            except Exception as error:
                wrong.append(f"{row.source}: {type(error).__name__}: {error}")
            seconds = time.monotonic() - began
            if seconds > SECONDS:
                wrong.append(f"{row.source}: took {seconds:.0f} s")
    return counts, wrong


def main(arguments: Sequence[str]) -> int:
    """Entry point; returns the exit status."""
    number, seed = (*map(int, arguments), *(5000, 1)[len(arguments) :])[:2]
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong = fuzz(number, seed, Path(folder))
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    for one in wrong[:20]:
        print(f"wrong: {one[:500]!r}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
