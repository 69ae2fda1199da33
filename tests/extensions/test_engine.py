"""A rollout engine brought by a plugin from one folder outside the package."""

from __future__ import annotations

from pathlib import Path

from tests.functional.launches import CP2, FROZEN, Arena, Outcome, curve, metrics_of

PLUGIN = ("--plugin", "tests.extensions.engine.transformers_engine")


def train(
    arena: Arena, *flags: str | Path, engine: str = "transformers", ranks: int = 2
) -> Outcome:
    return arena.launch(
        "train_rl",
        *(*FROZEN, "--train-data-path", arena.data("train"), "--lr", "1e-3", "--train-iters", "3"),
        *("--grpo-prompts-per-step", "2", "--grpo-group-size", "2", "--rollout-max-tokens", "12"),
        *("--rollout-engine", engine, *flags),
        ranks=ranks,
    )


def test_it_generates_what_the_trainer_trains(arena: Arena, tmp_path: Path) -> None:
    """The engine's log-probabilities are the trainer's, after each update, too."""
    train(arena, *CP2, *PLUGIN, "--save", tmp_path).succeeded()
    steps = metrics_of(tmp_path)
    assert curve(steps, "iteration") == [1, 2, 3]
    assert curve(steps, "updates") == curve(steps, "weights_sent") == [1, 1, 1]
    assert max(curve(steps, "rollout_corr/logprob_diff_max")) < 1e-4


def test_one_that_generates_beside_the_trainer(arena: Arena, tmp_path: Path) -> None:
    """It gives what the first one gives, and with --rollout-lag the rollouts of older weights."""
    runs = {}
    for engine in ("transformers", "transformers_beside"):
        folder = tmp_path / engine
        train(arena, *CP2, *PLUGIN, "--save", folder, engine=engine).succeeded()
        runs[engine] = metrics_of(folder)
    for metric in ("lm loss", "grad-norm", "reward/mean"):
        one, beside = (curve(steps, metric) for steps in runs.values())
        assert one == beside, metric
    lag = ("--rollout-lag", "1", "--rollout-correction", "token", "--save", tmp_path / "lag")
    train(arena, *CP2, *PLUGIN, *lag, engine="transformers_beside").succeeded()
    assert curve(metrics_of(tmp_path / "lag"), "rollout_lag") == [0, 1, 1]


def test_its_name_is_unknown_without_the_plugin(arena: Arena) -> None:
    (told,) = train(arena, ranks=1).errors
    assert "rollout_engine" in told and "'colocated', 'server' or 'megatron'" in told
