"""The README's commands with a stock folder and own files: nothing else is given."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import stock_folders
from tests.audio_files import tone, write_film, write_sound
from tests.functional.clips import write_clip
from tests.functional.launches import metrics_of, run, write_rows
from tests.functional.stock_answers import TOKENS
from tests.runner.tiers import full_only
from tests.torchvision_beside import python_path

QUESTION = "Which colour is it?\nA. red\nB. green"
SMALL = (
    *("--rollout-max-tokens", str(TOKENS)),
    *("--grpo-prompts-per-step", "4", "--grpo-group-size", "2"),
)
"""What a test has no time for in full."""

ROWS = 12
FIRST_PROMPT = re.compile(r"first prompt, (\d+) tokens \((.*?):(\d+)\):\n(.*?)\n\[20", re.DOTALL)
MEDIA = re.compile(r"(<\|(?:video_pad|image_pad|VIDEO|IMAGE|AUDIO)\|>)\1*")


def longrl(*arguments: str | Path, ranks: int = 1) -> str:
    command = ["-m", "megatron_longrl", *map(str, arguments)]
    output = run(command, ranks, 240).succeeded().output
    assert "Transformer Engine" not in output and "Warning" not in output
    return output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three data sets: of text; of clips, images and text in turns; of clips with
    their sound, sounds and text in turns."""
    folder = tmp_path_factory.mktemp("data")
    text: list[dict[str, Any]] = []
    mixed: list[dict[str, Any]] = []
    heard: list[dict[str, Any]] = []
    for number in range(ROWS):
        question = {"problem": f"What is {number} * 7?", "answer": str(7 * number)}
        colour: dict[str, Any] = {"problem": QUESTION, "answer": "AB"[number % 2]}
        text.append(question)
        if number % 3 == 0:
            write_clip(folder / f"{number}.mp4", number % 2, 12 + number)
            mixed.append({**colour, "videos": [f"{number}.mp4"]})
            add_sound(folder, number)
            film = {"videos": [f"heard{number}.mp4"], "audio_in_video": True}
            heard.append({**colour, **film})
        elif number % 3 == 1:
            Image.new("RGB", (48 + number, 40), (0, 20 * number, 90)).save(folder / f"{number}.png")
            mixed.append({**colour, "images": [f"{number}.png"]})
            write_sound(folder / f"{number}.wav", tone(0.3 * number, 90.0 * number, 16_000))
            heard.append({**colour, "audios": [f"{number}.wav"]})
        else:
            mixed.append(question)
            heard.append(question)
    write_rows(folder / "text.jsonl", text)
    write_rows(folder / "mixed.jsonl", mixed)
    write_rows(folder / "heard.jsonl", heard)
    return folder


def add_sound(folder: Path, number: int) -> None:
    """A film of one grey that changes its shade, whose sound is longer than itself."""
    frames = [np.full((48, 64, 3), 60 + 5 * k, np.uint8) for k in range(12 + number)]
    sound = [(0.0, tone(3.0, 200.0 * (number + 1), 16_000))]
    write_film(folder / f"heard{number}.mp4", frames, 10, sound, sound_rate=16_000)


@dataclass
class Way:
    """Where a stranger has come with a model."""

    family: str
    model: Path
    data: Path
    runs: Path
    said: dict[str, str] = field(default_factory=dict)
    """Subcommand -> what it printed."""

    @property
    def sees(self) -> bool:
        return self.family in stock_folders.SEES

    def go(self, ranks: int) -> None:
        """SFT, GRPO, resume, evaluate, export by the README's commands."""
        model, data, runs, said = self.model, self.data, self.runs, self.said
        start = ("--train-data-path", data, "--save")
        said["check"] = longrl("check", data)
        said["train-sft"] = longrl(
            "train-sft", "--pretrained-checkpoint", model, *start, runs / "sft"
        )
        mrsp = ("--multimodal-sequence-parallel-size", str(ranks))
        said["train-rl"] = longrl(
            *("train-rl", "--pretrained-checkpoint", runs / "sft", *start, runs / "grpo"),
            *(*SMALL, *mrsp, "--train-iters", "1"),
            ranks=ranks,
        )
        resume = ("--load", runs / "grpo", "--train-iters", "2")
        said["resume"] = longrl("train-rl", *resume, ranks=ranks)
        moved = (runs / "grpo").rename(runs / "moved")
        answers = runs / "answers.json"
        said["evaluate"] = longrl(
            *("evaluate", "--load", moved, "--data", data, "--output", answers), ranks=ranks
        )
        said["convert"] = longrl(
            *("convert", "--loader", "megatron", "--saver", "hf"),
            *("--load-dir", moved, "--save-dir", runs / "exported"),
        )


@pytest.fixture(
    scope="module",
    params=full_only(
        "tests/functional/test_first_use.py::test_responses_end_where_generate_ends",
        list(stock_folders.KINDS),
        ("qwen2_5_vl",),
    ),
)
def way(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Way:
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    kind = "heard" if "omni" in family else "mixed" if family in stock_folders.SEES else "text"
    rows = data / f"{kind}.jsonl"
    way = Way(family, stock_folders.write(folder / "model", family), rows, folder)
    way.go(ranks=2)
    return way


@pytest.fixture(scope="module")
def theirs(way: Way) -> list[dict[str, Any]]:
    """Prompts and greedy answers of transformers with the exported folder."""
    written = way.runs / "transformers.json"
    command = ["-m", "tests.functional.stock_answers"]
    command += [str(path) for path in (way.runs / "exported", way.data, written)]
    extra = python_path() if way.family.endswith(("_vl", "_omni")) else {}
    run(command, 1, 240, extra).succeeded()
    answers: list[dict[str, Any]] = json.loads(written.read_text(encoding="utf-8"))
    return answers


def test_a_model_and_data_are_enough_from_sft_to_export(way: Way) -> None:
    """One epoch, frames at two a second, rows as long as needed; --load alone brings the recipe."""
    assert re.search(rf"^rows +{ROWS}, of which {ROWS} can be used", way.said["check"])
    steps = metrics_of(way.runs / "sft")
    assert [step["iteration"] for step in steps] == list(range(1, ROWS + 1))
    frames = {step["frames_encoded"] for step in steps}
    assert min(frames) == 0 and (max(frames) > 0) == way.sees
    if way.family != "nvila":  # it cuts images into tiles
        assert max(frames) <= 4
    sft = way.said["train-sft"]
    assert re.search(r"run: sft of \w+: \d+ K parameters, \d+ K of them trained", sft)
    assert re.search(rf"--seq-length \d+, of the longest of {ROWS} rows", sft)
    assert re.search(r"first target, \d+ tokens:\n.*<answer>.*</answer><\|(im_end|eot_id)\|>", sft)
    assert "continues with changes: train_iters: 1 -> 2\n" in way.said["resume"]
    assert [step["iteration"] for step in metrics_of(way.runs / "moved")] == [1, 2]
    assert re.search(r"^accuracy +\d+\.\d%", way.said["evaluate"], re.MULTILINE)
    assert generation(way, way.runs / "exported") == generation(way, way.model)


def generation(way: Way, folder: Path) -> dict[str, Any]:
    """The settings of ``generate``."""
    path = stock_folders.language_folder(folder, way.family) / "generation_config.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return settings


def test_prompts_are_those_of_the_chat_template(way: Way, theirs: Sequence[dict[str, Any]]) -> None:
    """Token for token as many, and the same text, whatever the command."""
    compared = 0
    for name in ("train-sft", "train-rl", "resume", "evaluate"):
        ((count, file, line, shown),) = FIRST_PROMPT.findall(way.said[name])
        assert file == str(way.data)
        expected = theirs[int(line) - 1]
        if expected["prompt"] is None:  # VILA is not in transformers
            continue
        compared += 1
        assert int(count) == len(expected["prompt"])
        text = MEDIA.sub(lambda m: f"{m[1]} x {len(m[0]) // len(m[1])}", expected["text"])
        # Lines of a record that are not its first one are indented.
        assert shown == "\n".join(line and f"    {line}" for line in text.split("\n"))
    assert compared or way.family == "nvila"


def test_responses_end_where_generate_ends(way: Way, theirs: Sequence[dict[str, Any]]) -> None:
    """Greedy answers of vLLM within the run and of transformers from the export, to every row; each
    end token of generation_config.json ends some."""
    ours = json.loads((way.runs / "answers.json").read_text())["answers"]
    ends = set(generation(way, way.model)["eos_token_id"])
    lasts = set()
    for mine, expected in zip(ours, theirs, strict=True):
        tokens = expected["response"]
        ended = tokens[-1] in ends
        lasts.add(tokens[-1] if ended else None)
        assert mine["response"] == expected["told"]
        assert mine["tokens"] == len(tokens)
        assert mine["finish_reason"] == ("stop" if ended else "length")
    assert lasts >= ends, "each of them"


def test_a_missing_field_is_one_line(data: Path) -> None:
    command = ["-m", "megatron_longrl", "train-rl", "--train-data-path", str(data / "text.jsonl")]
    done = run(command, 1, 60)
    assert done.status == 2
    assert done.output.splitlines() == done.errors
    assert done.errors[0].startswith("error: no model: give --pretrained-checkpoint FOLDER")
