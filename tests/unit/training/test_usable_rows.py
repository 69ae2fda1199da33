"""When a run whose samples are skipped ends, and which rows it begins with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_longrl.data.row_entries import Entries
from megatron_longrl.data.rows import Row, index_rows
from megatron_longrl.errors import UserError
from megatron_longrl.media.content_hash import identity
from megatron_longrl.media.modalities.video import probe as video_probe
from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.training.runtime import Runtime, build_runtime
from megatron_longrl.training.usable_rows import SkipLimit, usable_rows
from tests.distributed.layouts import tiny_config, write_data


def ends_at(limit: SkipLimit, steps: Sequence[tuple[int, int]]) -> tuple[int, str] | None:
    """Of steps (taken, skipped) the one that ends the run, and with which line."""
    for number, (taken, skipped) in enumerate(steps, start=1):
        try:
            limit.check(number, taken, skipped, lambda: "rows.jsonl:3: gone")
        except UserError as error:
            return number, str(error)
    return None


@pytest.mark.parametrize(
    ("rows", "steps", "expected"),
    [
        (100, [(4, 0), (4, 3), (4, 4)], 3),
        (100, [(4, 4)], 1),
        (100, [(1, 1), (1, 0), (1, 1), (1, 0)], None),
        (100, [(1, 1), (1, 1)], 2),
        (4, [(4, 2)] * 10, None),
        (4, [(4, 3)], 1),
        (4, [(2, 1), (2, 1), (2, 0), (2, 1)], None),
        (10, [(4, 2), (4, 3), (2, 1)], 3),
        (4, [(32, 16), (32, 16)], None),
        (4, [(32, 17)], 1),
        (8, [(0, 0), (0, 0)], None),
    ],
)
def test_how_much_may_be_skipped(
    rows: int, steps: list[tuple[int, int]], expected: int | None
) -> None:
    found = ends_at(SkipLimit(rows, 0.5), steps)
    assert (found and found[0]) == expected
    if found is not None:
        assert "rows.jsonl:3: gone" in found[1]


def test_the_share_is_the_users() -> None:
    assert ends_at(SkipLimit(10, 0.0), [(5, 0), (5, 1)]) == (
        2,
        "1 samples of an epoch of 10 were skipped, more than --max-skipped 0 allows; the last one: "
        "rows.jsonl:3: gone",
    )
    assert ends_at(SkipLimit(10, 1.0), [(5, 4), (5, 4)] * 5) is None


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    write_data(tmp_path)
    yield tmp_path
    destroy_parallel()


def runtime_of(data: Path, more: Sequence[dict[str, Any] | str] = (), **changes: Any) -> Runtime:
    """A run on the rows of :func:`write_data` with some more."""
    with (data / "train.jsonl").open("a", encoding="utf-8") as file:
        for row in more:
            file.write("\n" + (row if isinstance(row, str) else json.dumps(row)))
    return build_runtime(tiny_config(data, **changes), "sft")


def found_in(runtime: Runtime) -> tuple[int, int]:
    found = usable_rows(runtime, runtime.config.data.train_data_path)
    return len(found.rows), found.left_out


QUESTION = {"problem": "Where?", "answer": "A"}
BAD: dict[str, dict[str, Any] | str] = {
    "not JSON": "{",
    "nested": '{"problem": ' + "[" * 100_000,
    "no answer": {"problem": "Where?"},
    "half a character": {**QUESTION, "answer": "\ud800"},
    "NUL": {**QUESTION, "videos": "a\0.mp4"},
    "gone": {**QUESTION, "videos": "gone.mp4"},
    "a folder": {**QUESTION, "videos": "."},
    "long question": {**QUESTION, "problem": "why? " * 5000},
    "long thought": {**QUESTION, "reasoning": "so " * 5000},
    "placeholders": {**QUESTION, "problem": "<video>Where?"},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_row_that_cannot_be_used_is_left_out_at_the_start(
    data: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = runtime_of(data, [BAD[kind]])
    rows = len((data / "train.jsonl").read_text().splitlines())
    with caplog.at_level("WARNING", logger="megatron_longrl"):
        assert found_in(runtime) == (rows - 1, 1)
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert lines[0].startswith(f"row left out: {data / 'train.jsonl'}:{rows}: ")
    assert lines[1] == f"1 of {rows} rows are left out; longrl check lists all"


@pytest.mark.parametrize("kind", ["not JSON", "gone", "long thought"])
def test_strict_data_ends_the_run_at_the_start(data: Path, kind: str) -> None:
    runtime = runtime_of(data, [BAD[kind]], strict_data=True)
    with pytest.raises(UserError, match=r"train\.jsonl:\d+: "):
        found_in(runtime)


def test_without_its_videos_no_run_starts(data: Path) -> None:
    runtime = runtime_of(data)
    for path in data.glob("*.webm"):
        path.unlink()
    with pytest.raises(UserError) as caught:
        found_in(runtime)
    line = str(caught.value)
    assert "rows cannot be used, more than --max-skipped 0.5 allows; the first: " in line
    assert f"{data / 'train.jsonl'}:1: {data}" in line and "No such file" in line


def test_rows_are_read_and_videos_probed_once_to_find_the_length(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: Counter[Path] = Counter()

    def scan(path: Path, size: int, modified: int) -> video_probe.Scan:
        scans[path] += 1
        return real(path, size, modified)

    real = video_probe._scan.__wrapped__
    monkeypatch.setattr(video_probe, "_scan", scan)
    reads = []

    def read(*arguments: Any, **more: Any) -> Entries[Row]:
        reads.append(arguments)
        return index_rows(*arguments, **more)

    monkeypatch.setattr("megatron_longrl.training.sequence_length.index_rows", read)
    (data / "broken.webm").write_bytes(b"no video")
    bad = [BAD["not JSON"], BAD["gone"], {**QUESTION, "videos": "broken.webm"}]
    runtime = runtime_of(data, bad, seq_length_from_data=True)
    rows = len((data / "train.jsonl").read_text().splitlines())
    found = usable_rows(runtime, runtime.config.data.train_data_path)
    assert (len(found.rows), found.left_out) == (rows - 3, 3), "the broken video is known, too"
    assert len(reads) == 1
    prompts = runtime.build_prompts(found.rows)
    assert len(prompts) == len(found.rows)
    used = {path for row in found.rows for path in row.videos}
    assert {path: scans[path] for path in used} == dict.fromkeys(used, 1)
    longest = max(len(p.token_ids) + len(runtime.builder.response_ids(p.row)) for p in prompts)
    assert longest <= runtime.config.training.seq_length < longest + 64


def test_what_another_rank_has_probed_is_not_probed_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(data.glob("*.webm"))
    found = video_probe.probe(path)
    path.touch()  # Another file, as far as is known.
    monkeypatch.setattr(video_probe, "_scan", None)
    with pytest.raises(TypeError):
        video_probe.probe(path)
    video_probe.remember({identity(path): found})
    assert video_probe.probe(path) is found


def test_the_first_prompt_and_target_are_shown_once(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = runtime_of(data)
    rows = usable_rows(runtime, runtime.config.data.train_data_path).rows
    with caplog.at_level("INFO", logger="megatron_longrl"):
        runtime.build_prompts(rows)
        runtime.build_prompts(rows)
    shown = [r.getMessage() for r in caplog.records if r.getMessage().startswith("first ")]
    assert len(shown) == 2
    assert "<|im_start|>user" in shown[0] and rows[0].problem in shown[0] and " x " in shown[0]
    assert shown[1].startswith("first target, ") and shown[1].endswith("</answer><|im_end|>")
