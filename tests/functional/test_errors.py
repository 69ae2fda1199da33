"""What a user gets wrong ends the run at once, on all ranks, with one line that says what it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from megatron.core.extensions.transformer_engine import HAVE_TE

from tests.functional.launches import (
    CP2,
    FROZEN,
    TP2,
    Arena,
    Outcome,
    curve,
    metrics_of,
    read_rows,
    write_rows,
)
from tests.runner.tiers import full_only

STEPS = ("--train-iters", "2", "--lr", "1e-3", "--micro-batch-size", "2")
SECONDS = 60.0
# The machine of the tests may be busy with others' work; what it is given then is not the point.
ALLOWED = SECONDS * float(os.environ.get("LONGRL_TEST_PATIENCE", "1"))


def check(outcome: Outcome, *words: str, ranks: int = 1) -> None:
    """One line, soon."""
    assert outcome.status != 0, outcome.output[-3000:]
    assert len(outcome.errors) == 1, outcome.output[-3000:]
    for word in words:
        assert word in outcome.errors[0]
    if ranks == 1:
        assert outcome.status == 2
        assert "Traceback" not in outcome.output
    else:  # torchrun's last lines repeat it.
        assert outcome.errors[0] in outcome.output.split("Root Cause", 1)[1]


@pytest.fixture
def sft(arena: Arena, tmp_path: Path) -> Callable[..., Outcome]:
    """Launch SFT; flags that come later win."""

    def launch(*flags: str | Path, ranks: int = 1, cold: bool = False) -> Outcome:
        data = ("--train-data-path", arena.data("sft")) if "--train-data-path" not in flags else ()
        places = ("--save", tmp_path / "run")
        return arena.launch(
            *("train_sft", *STEPS, *data, *places, *flags),
            ranks=ranks,
            seconds=ALLOWED,
            cold=cold,
        )

    return launch


# ---- Before any process group ----


def test_misspelt_flag(sft: Callable[..., Outcome]) -> None:
    check(sft("--micro-bach-size", "2"), "'--micro-bach-size'", "--micro-batch-size")


def test_frames_exceed_the_sequence(sft: Callable[..., Outcome]) -> None:
    check(sft("--video-frames", "120"), "video_frames (120)", "seq_length (192)", "--seq-length")


def test_tensor_parallelism_that_does_not_divide_the_heads(sft: Callable[..., Outcome]) -> None:
    changed = ("--num-attention-heads", "3", "--num-query-groups", "3", "--kv-channels", "32")
    outcome = sft(*TP2, *changed, ranks=2, cold=True)
    check(outcome, "num_attention_heads (3)", "tensor_model_parallel_size (2)", ranks=2)


@pytest.mark.skipif(HAVE_TE, reason="Transformer Engine is installed")
def test_transformer_engine_that_is_not_installed(sft: Callable[..., Outcome]) -> None:
    outcome = sft("--transformer-impl", "transformer_engine")
    check(outcome, "package transformer-engine", "--transformer-impl local")


# ---- Found when the run starts ----


def test_no_such_data_file(sft: Callable[..., Outcome], tmp_path: Path) -> None:
    missing = tmp_path / "nothing.jsonl"
    check(sft("--train-data-path", missing), str(missing), "no such file or folder")


def test_empty_data_set(sft: Callable[..., Outcome], tmp_path: Path) -> None:
    empty = write_rows(tmp_path / "empty.jsonl", [])
    check(sft("--train-data-path", empty), str(empty), "no rows")


@pytest.mark.full("tests/functional/test_errors.py::test_an_error_on_one_rank_alone")
def test_row_without_a_video(sft: Callable[..., Outcome], arena: Arena, tmp_path: Path) -> None:
    rows = read_rows(arena.data("sft"))
    del rows[2]["videos"]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    flags = ("--train-data-path", data, "--strict-data")
    check(sft(*CP2, *flags, ranks=2, cold=True), f"{data}:3", "'videos'", ranks=2)


def test_checkpoint_of_another_architecture(sft: Callable[..., Outcome], sft_run: Path) -> None:
    outcome = sft("--load", sft_run, "--ffn-hidden-size", "192")
    check(outcome, "ffn_hidden_size = 192", "has 128: leave the fields of the model out")


def test_an_error_on_one_rank_alone(arena: Arena, tmp_path: Path) -> None:
    """The other rank waits for it in a collective, and keeps quiet about that."""
    flags = ("--train-data-path", arena.data("sft"), "--save", tmp_path / "run")
    outcome = arena.launch(
        *("train_sft", *STEPS, *CP2, *flags),
        seconds=ALLOWED,
        watched={"FAIL_AT": "1:1"},
        cold=True,
    )
    check(outcome, "rank 1 alone", ranks=2)
    assert outcome.output.count("Traceback") == 1, "that of torchrun itself"


# ---- Videos that cannot be read ----


@pytest.fixture
def bad_rows(arena: Arena, tmp_path: Path) -> list[dict[str, object]]:
    """Two rows: a video that was cut off in its last third, and a text file named .mp4."""
    truncated, text = read_rows(arena.data("train"))[:2]
    whole = Path(str(truncated["videos"])).read_bytes()
    (tmp_path / "truncated.webm").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 20)
    truncated["videos"], text["videos"] = "truncated.webm", "text.mp4"
    return [truncated, text]


@pytest.mark.full("tests/functional/test_errors.py::test_an_error_on_one_rank_alone")
def test_strict_data(
    sft: Callable[..., Outcome],
    arena: Arena,
    bad_rows: list[dict[str, object]],
    tmp_path: Path,
) -> None:
    """Each rank of MR-SP opens every other video, so that one rank alone meets the bad one."""
    data = write_rows(tmp_path / "rows.jsonl", [bad_rows[0]])
    flags = ("--strict-data", "--micro-batch-size", "1", *CP2)
    outcome = sft("--train-data-path", data, *flags, ranks=2, cold=True)
    check(outcome, "truncated.webm", f"{data}:1", "--strict-data", ranks=2)


@pytest.mark.parametrize(
    ("layout", "skipped"),
    full_only(
        "tests/functional/test_errors.py::test_sft_skips",
        [pytest.param(TP2, 2, id="TP2"), pytest.param((), 2, id="DP2")],
        ["DP2"],
    ),
)
def test_sft_skips(
    sft: Callable[..., Outcome],
    arena: Arena,
    bad_rows: list[dict[str, object]],
    tmp_path: Path,
    layout: tuple[str, ...],
    skipped: int,
) -> None:
    """Four rows, half of them bad, are all taken in each of two steps."""
    data = write_rows(tmp_path / "rows.jsonl", [*bad_rows, *read_rows(arena.data("train"))[2:4]])
    flags = ("--train-data-path", data, "--global-batch-size", "4", *layout)
    outcome = sft(*flags, ranks=2).succeeded()
    steps = metrics_of(tmp_path / "run")
    assert curve(steps, "samples_skipped") == [skipped, skipped]
    assert min(curve(steps, "grad-norm")) > 0
    assert outcome.output.count("sample skipped") == sum(curve(steps, "samples_skipped"))
    assert "truncated.webm" in outcome.output
    assert "text.mp4" in outcome.output


@pytest.mark.parametrize(
    "layout",
    full_only("tests/functional/test_errors.py::test_rl_skips", ["CP2", "DP2"], ["CP2"]),
)
def test_rl_skips(
    arena: Arena,
    sft_run: Path,
    bad_rows: list[dict[str, object]],
    tmp_path: Path,
    layout: str,
) -> None:
    """CP2: the first step has two bad rows and nothing else, and ends the run. DP2: each has one,
    so that one replica has nothing to train on while the other trains.
    """
    rows = bad_rows if layout == "CP2" else [bad_rows[0], read_rows(arena.data("train"))[2]]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    flags = (*STEPS, *FROZEN, "--grpo-prompts-per-step", "2", "--grpo-group-size", "8")
    places = ("--train-data-path", data, "--pretrained-checkpoint", sft_run)
    split = CP2 if layout == "CP2" else ()
    outcome = arena.launch("train_rl", *flags, *split, *places, "--save", tmp_path / "run")
    if layout == "CP2":
        check(outcome, "every sample of step 1 was skipped", f"{data}:")
        return
    outcome.succeeded()
    steps = metrics_of(tmp_path / "run")
    assert curve(steps, "samples_skipped") == [1, 1]
    assert outcome.output.count("sample skipped") == 2
    for name in ("grad-norm", "frames_encoded", "response_length/mean"):
        assert curve(steps, name)[0] > 0, name
