"""Training on recorded rollouts, without an engine, makes the updates of the run that recorded."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_longrl.rollout.records.files import read_lines, recorded_files
from tests.functional.launches import CP2, Arena, metrics_of, rl_flags

OF_AN_ENGINE = {"weights_sent", "prefix_cache_resets", "prompt_bytes_per_prompt"}
NO_ENGINE = ("--rollout-memory-gib", "1e9")
"""An engine would not start with so much memory."""


def test_a_replay_repeats_the_updates(
    arena: Arena, sft_run: Path, rl_run: Path, tmp_path: Path
) -> None:
    files = recorded_files(rl_run / "rollouts")
    assert {step: list(paths) for step, paths in files.items()} == {k: [0] for k in range(1, 6)}
    head, groups = read_lines(files[3][0])
    assert head["step"] == 3 and head["seconds"]["rollout"] > 0
    assert len(groups) == 4
    for group in groups:
        assert group["trained"] and len(group["responses"]) == 8
        for response in group["responses"]:
            assert len(response["token_ids"]) == len(response["logprobs"]) > 0
            assert response["advantage"] is not None and response["weight_version"] == 2

    flags = (*rl_flags(arena, sft_run), *CP2, *NO_ENGINE, "--save", str(tmp_path / "run"))
    arena.launch("train_rl", *flags, "--replay-rollouts", rl_run).succeeded()
    recorded, replayed = metrics_of(rl_run), metrics_of(tmp_path / "run")
    assert len(replayed) == 5
    for before, after in zip(recorded, replayed, strict=True):
        shared = (before.keys() & after.keys()) - OF_AN_ENGINE
        assert {"lm loss", "grad-norm", "reward/mean", "rollout_corr/logprob_diff_max"} <= shared
        assert {k: after[k] for k in shared} == {k: before[k] for k in shared}
    assert not (tmp_path / "run" / "rollouts").exists(), "a replay records nothing"


def test_a_record_of_other_data_is_refused(
    arena: Arena, sft_run: Path, rl_run: Path, tmp_path: Path
) -> None:
    flags = (*rl_flags(arena, sft_run), *CP2, *NO_ENGINE, "--save", str(tmp_path / "run"))
    outcome = arena.launch("train_rl", *flags, "--replay-rollouts", rl_run, "--seed", "77")
    assert outcome.status != 0
    assert len(outcome.errors) == 1 and "not those of the recorded run" in outcome.errors[0]
    more = arena.launch("train_rl", *flags, "--replay-rollouts", rl_run, "--train-iters", "9")
    assert len(more.errors) == 1 and "has steps 1-5" in more.errors[0]
    model = tmp_path / "record"
    model.mkdir()
    for paths in recorded_files(rl_run / "rollouts").values():
        for path in paths.values():
            first, _, rest = path.read_text(encoding="utf-8").partition("\n")
            head = json.loads(first)
            head["model"]["num_layers"] += 1
            (model / path.name).write_text(json.dumps(head) + "\n" + rest, encoding="utf-8")
    other = arena.launch("train_rl", *flags, "--replay-rollouts", model)
    assert len(other.errors) == 1 and "another model: num_layers" in other.errors[0]
