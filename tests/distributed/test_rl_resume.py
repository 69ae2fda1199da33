"""An interrupted run of RL goes on as if nothing had happened, bit for bit: critic, reference and
the weight of the KL term included.

tests/functional/test_resume.py does it with vLLM and SIGKILL.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrl.checkpoint.folder import iteration_folders
from megatron_longrl.config import Config
from megatron_longrl.rollout import build
from megatron_longrl.train_rl import train
from tests.distributed.cases import CP2, PP2, TP2
from tests.distributed.layouts import tiny_config
from tests.functional.launches import curve, metrics_of
from tests.scripted_engine import ScriptedEngine

STEPS = 7
SAVED = 2
"""Steps between checkpoints."""

COMMON: dict[str, object] = {
    "train_iters": STEPS,
    "lr": 2e-3,
    "min_lr": 1e-4,
    "lr_warmup_iters": 2,
    "clip_grad": 1.0,
    "use_distributed_optimizer": True,
    "save_interval": SAVED,
    "eval_interval": SAVED,
    "keep_last_checkpoints": 1,
    "keep_best_checkpoint_by": "valid/accuracy",
}
PPO: dict[str, object] = {
    "rl_algorithm": "ppo",
    "critic_lr": 5e-3,
    "critic_warmup_steps": 3,
    "grpo_iterations": 2,
    "gae_gamma": 0.95,
    "grpo_kl_beta": 0.05,
    "kl_type": "k1",
    "kl_placement": "reward",
}
ADAPTIVE: dict[str, object] = {
    "rl_algorithm": "dapo",
    "grpo_kl_beta": 0.1,
    "kl_target": 1e-3,
    "kl_horizon": 40.0,
    "ref_reset_interval": 2,
    "global_batch_size": 4,
    "rollout_correction": "token",
}


class Interrupted(Exception):
    """What ends the first run."""


def run(config: Config, monkeypatch: pytest.MonkeyPatch, stop_at: int | None) -> ScriptedEngine:
    """The entry point on a scripted engine.

    Args:
        stop_at: step, counted from 0, in which the run ends.
    """

    def is_right(number: int, index: int, step: int) -> bool:
        if step == stop_at:
            raise Interrupted
        # After the second step all greedy answers are right, else half of them.
        return (step == 1 and index == 0) or (number + index + step) % 2 == 0

    engine = ScriptedEngine(is_right)
    monkeypatch.setattr(build, "build_engine", lambda *_: engine)
    if stop_at is None:
        train(config)
    else:
        with pytest.raises(Interrupted):
            train(config)
    return engine


@pytest.mark.parametrize("stop_at", [3, 5])
@pytest.mark.parametrize(
    ("options", "layout"),
    [(PPO, {}), (PPO, TP2), (PPO, PP2), (ADAPTIVE, {}), (ADAPTIVE, CP2)],
    ids=["PPO, DP2", "PPO, TP2", "PPO, PP2", "adaptive KL, DP2", "adaptive KL, MR-SP2"],
)
def test_an_interrupted_run(tiny_data, shared_path, monkeypatch, options, layout, stop_at):
    places = {
        name: {"save": str(shared_path / name), "load": str(shared_path / name)}
        for name in ("whole", "parts")
    }
    rest = COMMON | {"valid_data_path": [str(tiny_data / "train.jsonl")]} | options | layout
    configs = {name: tiny_config(tiny_data, **(rest | place)) for name, place in places.items()}
    whole = run(configs["whole"], monkeypatch, None)
    run(configs["parts"], monkeypatch, stop_at)
    again = run(configs["parts"], monkeypatch, None)

    saved = stop_at // SAVED * SAVED
    assert len(whole.digests) == STEPS + 1
    assert again.digests == whole.digests[saved:]
    assert len(set(whole.digests)) == (STEPS + 1 if options is ADAPTIVE else STEPS - 2)
    steps = metrics_of(Path(places["whole"]["save"]))
    assert metrics_of(Path(places["parts"]["save"])) == steps
    assert curve(steps, "iteration") == list(range(1, STEPS + 1))
    if options is PPO:
        assert all("grad-norm" not in step for step in steps[:3])
        assert len(set(curve(steps, "critic/grad-norm"))) == STEPS
    else:
        assert len(set(curve(steps, "kl/beta"))) == STEPS
    # Of the checkpoints the newest is left, and the best, which was saved before the interruption.
    for place in places.values():
        assert sorted(iteration_folders(Path(place["save"]))) == [2, STEPS]
