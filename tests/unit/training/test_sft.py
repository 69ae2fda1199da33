"""Supervised training on one rank, with real videos."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_longrl.data.dataset import RowSampler
from megatron_longrl.data.rows import load_rows
from megatron_longrl.errors import UserError
from megatron_longrl.media.media_error import MediaError
from megatron_longrl.media.modalities.video import decode
from megatron_longrl.media.modalities.video.pyav import decode_in_chunks
from megatron_longrl.media.quarantine import Quarantine
from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.training.data_iterator import DataIterator
from megatron_longrl.training.runtime import build_runtime
from megatron_longrl.training.sft import SFTTrainer
from tests.distributed.layouts import tiny_config, write_data


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """Four rows; the second one's video is broken."""
    write_data(tmp_path)
    (tmp_path / "1-0.webm").write_bytes(b"not a video")
    yield tmp_path
    destroy_parallel()


def test_training_and_validation_count_their_own_skips_defect_8(data):
    runtime = build_runtime(tiny_config(data, eval_batch_size=3), "sft")
    rows = load_rows(runtime.config.data.train_data_path)
    trainer = SFTTrainer(runtime)
    before = trainer.validate(rows)
    assert before["valid/samples_skipped"] == 1
    # The loss is that of the rows that are left, however they are cut into batches.
    assert before["valid/lm loss"] > 0
    whole = [row for row in rows if row.problem_id != "1"]
    after = trainer.validate(whole)
    assert after["valid/lm loss"] == pytest.approx(before["valid/lm loss"], rel=1e-5)
    assert after["valid/samples_skipped"] == 0
    source = DataIterator(RowSampler(rows, 0, shuffle=False), 0, len(rows), runtime.groups)
    metrics = trainer.step(0, source)
    assert source.consumed == len(rows)
    assert metrics["samples_skipped"] == 1
    assert metrics["frames_decoded"] == 46
    assert metrics["lm loss"] == pytest.approx(before["valid/lm loss"], rel=1e-5)


def test_a_video_that_does_not_answer_is_waited_for_once(data, monkeypatch, caplog):
    """Neither a later step nor a later run waits for it again."""
    hung, answers, asked = data / "0-0.webm", threading.Event(), []

    def wait(path, *given):
        if path == str(hung):
            asked.append(path)
            answers.wait(60)
        return decode_in_chunks(path, *given)

    monkeypatch.setattr(decode, "decode_in_chunks", wait)
    config = tiny_config(data, media_timeout=2.0)
    runtime = build_runtime(config, "sft")
    runtime.builder.quarantine = Quarantine(data / "lists", 0)
    rows = load_rows(config.data.train_data_path)
    trainer = SFTTrainer(runtime)
    source = DataIterator(RowSampler(rows, 0, shuffle=False), 0, len(rows), runtime.groups)
    skipped = [trainer.step(step, source)["samples_skipped"] for step in range(2)]
    answers.set()
    assert skipped == [2, 2] and asked == [str(hung)]
    told = [line for line in caplog.messages if f"{hung}: did not answer within 2 sec" in line]
    assert len(told) == 2 and "in quarantine" in told[1]
    with pytest.raises(MediaError, match="did not answer"):
        Quarantine(data / "lists", 0).check(hung)
    runtime.media.encoder.loader.close()


def test_strict_data_ends_the_run_at_the_row(data):
    runtime = build_runtime(tiny_config(data, strict_data=True), "sft")
    rows = load_rows(runtime.config.data.train_data_path)
    with pytest.raises(UserError, match=r"train\.jsonl:2: .*1-0\.webm"):
        SFTTrainer(runtime).validate(rows)


def test_an_update_without_a_finite_gradient_changes_nothing_and_three_end_the_run(data):
    runtime = build_runtime(tiny_config(data), "sft")
    rows = load_rows(runtime.config.data.train_data_path)
    trainer = SFTTrainer(runtime, {"skipped_updates": 1})
    norm = runtime.model.policy.module.decoder.final_layernorm.weight
    with torch.no_grad():
        norm[0] = float("nan")
    before = [p.detach().clone() for m in runtime.model.modules.values() for p in m.parameters()]
    source = DataIterator(RowSampler(rows, 0, shuffle=False), 0, len(rows), runtime.groups)
    assert trainer.step(0, source)["skipped_updates"] == 1
    assert trainer.state() == {"skipped_updates": 2}
    after = [p for m in runtime.model.modules.values() for p in m.parameters()]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(UserError, match=r"nan in 3 updates in a row, up to step 2"):
        trainer.step(1, source)
