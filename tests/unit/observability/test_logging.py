"""metrics.jsonl, the log line, trackers, progress and timing."""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_longrl.config import Config
from megatron_longrl.errors import UserError, error_line
from megatron_longrl.observability.log_line import LogInterval
from megatron_longrl.observability.logging import LOG_FILE, MetricsLogger, configure_logging
from megatron_longrl.observability.metrics_file import MetricsFile, read_metrics
from megatron_longrl.observability.progress import ProgressLines
from megatron_longrl.observability.timing import PhaseTimer

NOW = datetime(2025, 1, 1)
STEP = {"lm loss": 9.28644, "grad-norm": 2.7794, "learning-rate": 1e-6, "iteration-time": 0.12344}


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """A small configuration that saves below the test's folder."""

    def make(**changes: object) -> Config:
        fields: dict[str, object] = {
            "num_layers": 1,
            "hidden_size": 8,
            "ffn_hidden_size": 8,
            "num_attention_heads": 1,
            "vision_image_size": 4,
            "vision_patch_size": 2,
            "vision_hidden_size": 8,
            "vision_num_layers": 2,
            "vision_num_attention_heads": 1,
            "vision_ffn_hidden_size": 8,
            "seq_length": 16,
            "train_iters": 50,
            "save": str(tmp_path / "run"),
        }
        return Config.of(fields | changes)

    return make


@pytest.fixture
def metrics_path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def run(config: Config, first: int, last: int) -> None:
    """A run of some steps as the training loops do it."""
    logger = MetricsLogger(config, "rl", is_writer=True)
    logger.truncate_after(first - 1)
    for iteration in range(first, last + 1):
        metrics = {"lm loss": 1 / (3 * iteration), "frames_encoded": 7 * iteration}
        logger.log_step(iteration, metrics, consumed_samples=8 * iteration, batch_size=8)
    logger.close()


class TestLogLine:
    def test_it_is_megatrons(self):
        interval = LogInterval()
        interval.add(STEP, skipped=False)
        assert interval.line(1, 50, 8, 8, NOW) == (
            " [2025-01-01 00:00:00.000000] iteration        1/      50 | consumed samples:"
            "            8 | elapsed time per iteration (ms): 123.4 | learning rate: 1.000000E-06 |"
            " global batch size:     8 | lm loss: 9.286440E+00 | loss scale: 1.0 |"
            " grad norm: 2.779 | number of skipped iterations:   0 |"
            " number of nan iterations:   0 |"
        )

    def test_other_metrics_stand_where_megatron_puts_losses_and_times_stay_out(self):
        interval = LogInterval()
        metrics = {"reward/mean": 0.5, "frames_encoded": 12, "time/encode": 3.0}
        interval.add(STEP | metrics, skipped=False)
        line = interval.line(1, 50, 8, 8, NOW)
        assert "9.286440E+00 | reward/mean: 5.000000E-01 | frames_encoded: 12 | loss scale" in line
        assert "time/encode" not in line

    def test_means_are_averaged_counts_summed_and_the_rest_is_the_last(self):
        interval = LogInterval()
        interval.add(STEP | {"lm loss": 1.0, "samples_skipped": 1}, skipped=True)
        interval.add(STEP | {"lm loss": math.nan, "samples_skipped": 2}, skipped=True)
        last = {"lm loss": 2.0, "samples_skipped": 0, "grad-norm": 1.0, "iteration-time": 0.42344}
        interval.add(STEP | last, skipped=False)
        line = interval.line(3, 50, 24, 8, NOW)
        assert "lm loss: 1.500000E+00 |" in line
        assert "samples_skipped: 3 |" in line
        assert "(ms): 223.4 |" in line
        assert "grad norm: 1.000 |" in line
        assert "skipped iterations:   2 | number of nan iterations:   1 |" in line

    def test_what_was_not_measured_is_left_out(self):
        interval = LogInterval()
        interval.add({"valid/accuracy": 0.25}, skipped=False)
        line = interval.line(0, 50, None, None, NOW)
        assert "iteration        0/      50 | valid/accuracy: 2.500000E-01 | loss scale" in line


class TestMetricsFile:
    def test_floats_keep_all_digits(self, make_config, metrics_path):
        run(make_config(), 1, 3)
        steps = read_metrics(metrics_path)
        assert [step["lm loss"] for step in steps] == [1 / 3, 1 / 6, 1 / 9]
        assert steps[1] == {
            "iteration": 2,
            "consumed_train_samples": 16,
            "batch-size": 8,
            "lm loss": 1 / 6,
            "frames_encoded": 14,
        }

    def test_lines_are_valid_json_also_with_nan(self, tmp_path):
        file = MetricsFile(tmp_path / "m.jsonl")
        file.append({"iteration": 1, "a": math.nan, "b": math.inf, "c": -math.inf})

        def refuse(constant: str) -> float:
            raise AssertionError(f"{constant} is no JSON")

        text = file.path.read_text()
        assert json.loads(text, parse_constant=refuse)["a"] == "NaN"
        step = read_metrics(file.path)[0]
        assert math.isnan(step["a"])
        assert (step["b"], step["c"]) == (math.inf, -math.inf)

    def test_a_killed_and_resumed_run_leaves_what_an_uninterrupted_one_does(
        self, make_config, metrics_path
    ):
        run(make_config(), 1, 6)
        whole = metrics_path.read_bytes()
        metrics_path.unlink()
        run(make_config(), 1, 5)
        with metrics_path.open("a") as file:
            file.write('{"iteration": 6, "lm lo')  # Killed while it wrote.
        run(make_config(), 4, 6)
        assert metrics_path.read_bytes() == whole

    def test_a_run_that_starts_anew_starts_the_file_anew(self, make_config, metrics_path):
        config = make_config()
        MetricsLogger(config, "rl", is_writer=True).log_step(0, {"valid/accuracy": 0.3})
        run(config, 1, 2)
        assert [step["iteration"] for step in read_metrics(metrics_path)] == [1, 2]

    def test_the_validation_before_the_first_step_survives_a_resume(
        self, make_config, metrics_path
    ):
        logger = MetricsLogger(make_config(), "rl", is_writer=True)
        logger.log_step(0, {"valid/accuracy": 0.3})
        logger.log_step(1, {"lm loss": 1.0})
        run(make_config(), 2, 2)
        assert [step["iteration"] for step in read_metrics(metrics_path)] == [0, 1, 2]

    def test_the_old_file_stays_whole_until_the_new_one_is(
        self, make_config, metrics_path, monkeypatch
    ):
        run(make_config(), 1, 3)
        before = metrics_path.read_bytes()

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            MetricsFile(metrics_path).truncate_after(1)
        assert metrics_path.read_bytes() == before

    @pytest.mark.parametrize(
        "line",
        [b"no json", b"[1]", b'{"loss": 1.0}', b'{"iteration": []}', b"\x80\x02", b"[" * 100_000],
        ids=["text", "list", "none", "type", "bytes", "nested"],
    )
    def test_a_foreign_file_is_refused(self, tmp_path, line):
        path = tmp_path / "m.jsonl"
        path.write_bytes(b'{"iteration": 1}\n' + line + b"\n")
        with pytest.raises(UserError, match=r"m\.jsonl:2: not a step"):
            MetricsFile(path).truncate_after(1)

    def test_a_missing_file(self, tmp_path):
        MetricsFile(tmp_path / "none.jsonl").truncate_after(3)
        with pytest.raises(UserError, match=r"none\.jsonl: cannot read"):
            read_metrics(tmp_path / "none.jsonl")


class TestMetricsLogger:
    def test_one_line_per_interval_and_at_the_end(self, make_config, capsys):
        config = make_config(log_interval=4, train_iters=10, log_format="megatron")
        run(config, 1, 10)
        lines = capsys.readouterr().out.splitlines()
        assert (Path(config.checkpoint.save) / LOG_FILE).read_text().splitlines() == lines
        assert [line.split("iteration")[1].split("/")[0].strip() for line in lines] == [
            "4",
            "8",
            "10",
        ]
        assert "frames_encoded: 133 |" in lines[2]  # Steps 9 and 10.

    def test_lines_for_people(self, make_config, capsys):
        run(make_config(log_interval=4, train_iters=10), 1, 10)
        lines = capsys.readouterr().out.splitlines()
        assert [line[:10] for line in lines] == ["step  4/10", "step  8/10", "step 10/10"]

    def test_only_the_writer_writes(self, make_config, tmp_path, capsys):
        config = make_config(tensorboard_dir=str(tmp_path / "tb"), wandb_project="p")
        logger = MetricsLogger(config, "sft", is_writer=False)
        logger.truncate_after(0)
        logger.log_step(1, STEP)
        logger.close()
        assert list(tmp_path.iterdir()) == []
        assert capsys.readouterr().out == ""

    def test_without_a_save_folder_there_is_the_line_only(self, make_config, capsys, tmp_path):
        run(make_config(save=None, log_format="megatron"), 1, 1)
        assert "iteration        1/" in capsys.readouterr().out
        assert list(tmp_path.iterdir()) == []

    def test_tensors_are_taken(self, make_config, metrics_path):
        torch = pytest.importorskip("torch")
        logger = MetricsLogger(make_config(), "sft", is_writer=True)
        logger.log_step(1, {"lm loss": torch.tensor(0.5)})
        assert read_metrics(metrics_path) == [{"iteration": 1, "lm loss": 0.5}]

    def test_the_recipe_is_kept_with_the_metrics(self, make_config, tmp_path):
        config = make_config(lr=3e-7)
        MetricsLogger(config, "sft", is_writer=True)
        kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
        assert Config.of(kept).flat() == config.flat()

    def test_tensorboard_gets_megatrons_keys_and_a_resume_hides_what_it_repeats(
        self, make_config, tmp_path
    ):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folder = str(tmp_path / "tb")
        config = make_config(tensorboard_dir=folder)
        for first, last, loss in ((1, 5, 1.0), (4, 6, 2.0)):
            logger = MetricsLogger(config, "sft", is_writer=True)
            logger.truncate_after(first - 1)
            for iteration in range(first, last + 1):
                logger.log_step(iteration, STEP | {"lm loss": loss}, batch_size=8)
            logger.close()
            time.sleep(1.1)  # TensorBoard orders its files by the second that they were made in.
        events = EventAccumulator(folder)
        events.Reload()
        assert {"lm loss", "grad-norm", "learning-rate", "batch-size"} <= set(
            events.Tags()["scalars"]
        )
        losses = [(event.step, event.value) for event in events.Scalars("lm loss")]
        assert losses == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]

    def test_tensorboard_gets_pictures(self, make_config, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folder = str(tmp_path / "tb")
        logger = MetricsLogger(make_config(tensorboard_dir=folder), "rl", is_writer=True)
        pixels = np.zeros((6, 9, 3), dtype=np.uint8)
        logger.log_step(0, {"valid/reward": 0.5}, pictures={"valid/samples": pixels})
        logger.close()
        events = EventAccumulator(folder)
        events.Reload()
        (event,) = events.Images("valid/samples")
        assert (event.step, event.height, event.width) == (0, 6, 9)

    def test_a_wandb_that_does_not_work_is_a_warning(self, make_config, monkeypatch, caplog):
        def broken(**_: object) -> None:
            raise RuntimeError("no network")

        monkeypatch.setattr("wandb.init", broken)
        run(make_config(wandb_project="p"), 1, 2)
        assert "wandb does not start, metrics are not sent to it: no network" in caplog.text

    def test_wandb_without_a_key_is_kept_offline_and_asks_nobody(
        self, make_config, monkeypatch, caplog
    ):
        modes = []
        monkeypatch.setattr("wandb.login", lambda prompt, verify: prompt)
        monkeypatch.setattr("wandb.init", lambda mode, **_: modes.append(mode))
        run(make_config(wandb_project="p", wandb_mode="online"), 1, 1)
        assert modes == ["offline"]
        assert "no API key" in caplog.text

    def test_a_resumed_wandb_run_has_the_same_id(self, make_config, monkeypatch):
        started = []

        class Run:
            def __init__(self) -> None:
                self.logged: list[tuple[int, dict[str, Any]]] = []

            def log(self, metrics: dict[str, Any], step: int) -> None:
                self.logged.append((step, metrics))

            def finish(self) -> None:
                self.logged.append((-1, {}))

        def init(**arguments: object) -> Run:
            started.append((arguments, Run()))
            return started[-1][1]

        monkeypatch.setattr("wandb.init", init)
        config = make_config(wandb_project="p", wandb_exp_name="cups")
        for _ in range(2):
            logger = MetricsLogger(config, "sft", is_writer=True)
            pixels = np.zeros((6, 9, 3), dtype=np.uint8)
            metrics = {"lm loss": 0.5, "kl/mean": math.nan}
            logger.log_step(1, metrics, pictures={"valid/samples": pixels})
            logger.close()
        (first, run_), (second, _) = started
        assert first["id"] == second["id"]
        assert (first["project"], first["name"], first["mode"]) == ("p", "cups", "offline")
        told, shown, ended = run_.logged
        assert (told, ended) == ((1, {"lm loss": 0.5}), (-1, {}))
        assert shown[0] == 1 and shown[1]["valid/samples"].image.size == (9, 6)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestProgress:
    def test_plain_lines_without_a_terminal(self):
        stream = io.StringIO()
        progress = ProgressLines("rl", 4, stream)
        progress.step(1, "loss 1")
        progress.line(" iteration [1] |")
        progress.close()
        assert stream.getvalue() == " iteration [1] |\n"

    def test_a_bar_and_whole_lines_on_a_terminal(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")
        stream = Terminal()
        progress = ProgressLines("rl", 4, stream)
        progress.step(3, "reward 0.500")
        long = " iteration [red]1[/red] | " + 300 * "x"
        progress.line(long)
        progress.close()
        assert "3/4" in stream.getvalue()
        assert "reward 0.500" in stream.getvalue()
        assert long in stream.getvalue()


class TestPhaseTimer:
    def test_a_phase_inside_another_counts_for_itself_only(self):
        timer = PhaseTimer(lambda: None)
        with timer("encode"):
            time.sleep(0.02)
            with timer("decode"):
                time.sleep(0.05)
        seconds = timer.pop()
        assert seconds["time/decode"] >= 0.05
        assert 0.02 <= seconds["time/encode"] < 0.05

    def test_phases_add_up_until_they_are_taken(self):
        timer = PhaseTimer(lambda: None)
        for phase in ("encode", "rollout", "encode"):
            with timer(phase):
                time.sleep(0.01)
        seconds = timer.pop()
        assert list(seconds) == ["time/encode", "time/rollout"]
        assert seconds["time/encode"] >= 0.02
        assert timer.pop() == {}

    def test_the_device_is_waited_for_before_and_after(self):
        calls: list[str] = []
        timer = PhaseTimer(lambda: calls.append("wait"))
        with timer("update"):
            calls.append("work")
        assert calls == ["wait", "work", "wait"]

    def test_a_phase_that_fails_is_counted(self):
        timer = PhaseTimer(lambda: None)
        with pytest.raises(KeyError), timer("reward"):
            raise KeyError
        assert "time/reward" in timer.pop()


def test_messages_carry_level_and_rank(capsys):
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging("warning", rank=3)
        logging.getLogger("a.b").info("hidden")
        logging.getLogger("a.b").warning("shown")
        error = capsys.readouterr().err
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "rank 3 WARNING a.b: shown" in error
    assert "hidden" not in error


def test_what_files_are_called_forges_no_record(capfd):
    name = "a.mp4\n[2026-01-01 00:00:00,000] rank 0 ERROR x: forged\r\x1b[2J\u202e"
    try:
        configure_logging("info", rank=0)
        logging.getLogger("megatron_longrl.test").warning("sample skipped: %s", name)
    finally:
        configure_logging("warning", rank=0)
    lines = capfd.readouterr().err.splitlines()
    assert [line.startswith("[") for line in lines] == [True, False]
    assert all(line.isprintable() for line in lines)
    assert lines[1].endswith("forged\\r\\x1b[2J\\u202e")


def test_nor_does_it_forge_the_line_of_an_error():
    assert error_line("a\x1b[2J\nerror: b") == "error: a\\x1b[2J error: b\n"
