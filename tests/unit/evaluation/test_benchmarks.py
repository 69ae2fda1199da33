"""Every benchmark: its published files become rows, and prediction files score as they must."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_longrl.config.benchmarks import BENCHMARKS
from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.data.rows import load_rows
from megatron_longrl.errors import UserError
from megatron_longrl.evaluation.benchmark import CATEGORIES, find_benchmark
from megatron_longrl.evaluation.frame_sampling import FrameSampling
from megatron_longrl.evaluation.predictions import score_predictions
from megatron_longrl.evaluation.rows import convert_benchmark, read_benchmark
from tests.unit.evaluation.published import SAMPLES, write_json, write_jsonl
from tests.unit.rewards.endpoint import serve

JUDGED = {"activitynet_qa": 3, "mlvu": 1}
"""Rows that only a judge can score."""
BY_LOT = {"longvideobench": (1 / 5 + 1 / 4 + 1 / 3) / 3, "nextqa": 1 / 5, "mmau": (1 / 4) * 3 / 3}
"""What the published rule gives, on average, to answers that name no option."""


@pytest.fixture
def sample(tmp_path: Path) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        SAMPLES[name](tmp_path / name)
        return tmp_path / name

    return write


def test_every_benchmark_has_a_sample() -> None:
    assert set(SAMPLES) == set(BENCHMARKS.built_in)


@pytest.mark.parametrize("name", SAMPLES)
def test_published_files_become_rows(sample: Callable[[str], Path], name: str) -> None:
    folder = sample(name)
    rows = read_benchmark(name, folder)
    assert len(rows) >= 3
    assert len({row.problem_id for row in rows}) == len(rows)
    for row in rows:
        assert row.media and all(medium.path.is_file() for medium in row.media), row.media
        assert row.metadata["benchmark"] == name
        assert row.metadata[CATEGORIES], "accuracy is told by category"
    converted = folder.parent / "rows.jsonl"
    assert convert_benchmark(name, folder, converted) == len(rows)
    again = load_rows([converted])
    same = [replace(row, source="", uid="u") for row in rows]
    assert [replace(row, source="", uid="u") for row in again] == same
    assert [row.metadata for row in again] == [row.metadata for row in rows]


@pytest.mark.parametrize("name", SAMPLES)
def test_perfect_empty_and_shuffled_predictions(sample: Callable[[str], Path], name: str) -> None:
    rows = read_benchmark(name, sample(name))
    judged, count = JUDGED.get(name, 0), len(rows)

    def scored(responses: list[str]) -> dict[str, float]:
        summary, _ = score_predictions(rows, dict(enumerate(responses)), RewardSection())
        assert summary["samples"] == count, "rows without a score stay in the denominator"
        assert summary["unscored"] == judged == len(summary["unscored_rows"])
        return summary

    perfect = scored([row.answer for row in rows])
    assert perfect["accuracy"] == pytest.approx((count - judged) / count)
    whole = find_benchmark(name).total(
        [(row.metadata, float(row.metadata.get("reward") != "judge")) for row in rows]
    )
    assert perfect["benchmark_accuracy"] == pytest.approx(whole)
    empty = scored([""] * count)
    assert empty["accuracy"] == 0
    assert empty["benchmark_accuracy"] == pytest.approx(BY_LOT.get(name, 0))
    turned = [rows[(k + 1) % count].answer for k in range(count)]
    same = sum(row.answer == given for row, given in zip(rows, turned, strict=True))
    shuffled = scored(turned)
    if not judged:
        assert shuffled["accuracy"] == pytest.approx(same / count)
    assert shuffled["benchmark_accuracy"] < perfect["benchmark_accuracy"] or judged == count
    thought = scored([f"<think>A or B</think><answer>{row.answer}</answer>" for row in rows])
    assert thought["benchmark_accuracy"] == perfect["benchmark_accuracy"], "read behind the thought"


def test_a_row_without_a_prediction_counts_as_wrong(sample: Callable[[str], Path]) -> None:
    rows = read_benchmark("video_mme", sample("video_mme"))
    summary, records = score_predictions(rows, {0: "C", 2: "D"}, RewardSection())
    assert summary["accuracy"] == summary["benchmark_accuracy"] == pytest.approx(2 / 3)
    assert summary["unscored_rows"] == [{"problem_id": "001-1", "reason": "there is no prediction"}]
    by_duration = summary["by_category"]["duration"]
    assert {name: found["accuracy"] for name, found in by_duration.items()} == {
        "short": 1.0,
        "medium": 0.0,
        "long": 1.0,
    }
    assert by_duration["short"]["samples"] == 1 and len(records) == 3


def test_four_tries_of_vnbench_count_together(sample: Callable[[str], Path]) -> None:
    rows = read_benchmark("vnbench", sample("vnbench"))
    assert [row.answer for row in rows[:4]] == ["C", "B", "A", "D"]
    responses = {number: row.answer for number, row in enumerate(rows)}
    summary, _ = score_predictions(rows, responses | {5: "X"}, RewardSection())
    assert summary["accuracy"] == 7 / 8
    assert summary["benchmark_accuracy"] == 0.5, "of two types, one question each"


def test_tasks_of_mlvu_have_equal_weight(sample: Callable[[str], Path]) -> None:
    rows = read_benchmark("mlvu", sample("mlvu"))
    kinds = [row.metadata[CATEGORIES]["task_type"] for row in rows]
    assert kinds == ["plotQA", "plotQA", "count", "summary"]
    summary, _ = score_predictions(rows[:3], {0: "A", 1: "A", 2: "C"}, RewardSection())
    assert summary["benchmark_accuracy"] == pytest.approx((1 / 2 + 1) / 2)


def test_a_judge_scores_open_questions(sample: Callable[[str], Path]) -> None:
    rows = read_benchmark("activitynet_qa", sample("activitynet_qa"))
    with serve(lambda prompt, number: "Score: 0.75" if "red" in prompt else "Score: 0") as endpoint:
        settings = RewardSection(judge_url=endpoint.url, judge_model="m")
        summary, _ = score_predictions(rows, {0: "no", 1: "scarlet", 2: "three"}, settings)
    assert summary["unscored"] == 0
    assert summary["accuracy"] == pytest.approx(0.75 / 3), "the judge's score"
    assert summary["benchmark_accuracy"] == pytest.approx(1 / 3), "yes or no"
    kinds = summary["by_category"]["type"]
    assert {kind: found["accuracy"] for kind, found in kinds.items()} == {
        "color": 0.75,
        "number": 0.0,
        "yes/no": 0.0,
    }


PROMPTS = {
    "longvideobench": "Answer with the option's letter from the given choices directly.\n",
    "mlvu": "(D) none\nOnly give the best option.\nBest option: (",
    "lvbench": "(D) Nobody\nAnswer the question with the option letter",
    "video_mmmu": "Please ignore the Quiz question in last frame of the video.",
    "vnbench": "D. fig\nAnswer with the option's letter from the given choices directly.",
    "activitynet_qa": "Is it raining? Answer the question using a single word or phrase.",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_the_end_of_the_published_prompt(sample: Callable[[str], Path], name: str) -> None:
    row = read_benchmark(name, sample(name))[0]
    assert find_benchmark(name).prompt(row, FrameSampling(8, None)).endswith(PROMPTS[name])


class _Sampling(FrameSampling):
    """Looks at fixed times."""

    def seconds(self, path: Path) -> list[float]:
        return [0.0, 3.0][: self.max_frames]


@pytest.mark.parametrize(("frames", "shown"), [(1, "Look up"), (2, "Look up\nA moon")])
def test_subtitles_of_the_frames_that_are_seen(
    sample: Callable[[str], Path], frames: int, shown: str
) -> None:
    rows = read_benchmark("video_mme_subtitles", sample("video_mme_subtitles"))
    benchmark = find_benchmark("video_mme_subtitles")
    text = benchmark.prompt(rows[0], _Sampling(frames, None))
    assert text.startswith(f"This video's subtitles are listed below:\n{shown}\nSelect the best")
    without = benchmark.prompt(rows[1], _Sampling(frames, None))
    assert "\nNo subtitles available\n" in without


@pytest.mark.parametrize(
    ("name", "break_it", "message"),
    [
        ("video_mme", lambda f: (f / "videomme").rename(f / "x"), "holds no videomme/*.parquet"),
        (
            "video_mme_subtitles",
            lambda f: (f / "subtitle.zip").unlink(),
            "holds neither subtitle.zip nor a folder subtitle",
        ),
        (
            "daily_omni",
            lambda f: write_json(f / "qa.json", [{"Question": "?"}]),
            "qa.json[0]: field 'video_id' is missing or not a text",
        ),
        (
            "longvideobench",
            lambda f: write_json(f / "lvb_val.json", [{"candidates": ["a"], "correct_choice": 3}]),
            "correct_choice 3 is none of 1 options",
        ),
        ("lvbench", lambda f: write_jsonl(f / "video_info.meta.jsonl", []), "have no questions"),
        ("mmau", lambda f: (f / "mmau-test-mini.json").write_text("{"), "not JSON"),
    ],
)
def test_files_that_are_not_the_benchmarks(
    sample: Callable[[str], Path], name: str, break_it: Callable[[Path], object], message: str
) -> None:
    folder = sample(name)
    break_it(folder)
    with pytest.raises(UserError) as caught:
        read_benchmark(name, folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_benchmark(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'videomme' is no benchmark.*video_mme"):
        read_benchmark("videomme", tmp_path)


def test_media_of_equal_names_are_refused(sample: Callable[[str], Path]) -> None:
    folder = sample("longvideo_reason")
    (folder / "more").mkdir()
    (folder / "more" / "2.webm").touch()
    with pytest.raises(UserError, match="have the same name: keep one of them"):
        read_benchmark("longvideo_reason", folder)


def test_what_is_written_can_be_read_as_json(sample: Callable[[str], Path], tmp_path: Path) -> None:
    convert_benchmark("video_mme_subtitles", sample("video_mme_subtitles"), tmp_path / "r.jsonl")
    first = json.loads((tmp_path / "r.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert first["videos"] == ["video_mme_subtitles/data/v0.mp4"], "relative to the file"
    assert first["subtitles"][0] == [0.0, 1.5, "Look up"]
