"""An interrupted run of RL goes on as if nothing had happened, bit for bit: critic, reference and
the weight of the KL term included. With vLLM and SIGKILL: tests/functional/test_resume.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_longrl.checkpoint.folder import iteration_folders
from megatron_longrl.config import Config
from megatron_longrl.rollout import build
from megatron_longrl.train_rl import train
from tests.distributed.cases import CP2, PP2, TP2
from tests.distributed.layouts import tiny_config
from tests.functional.launches import curve, metrics_of
from tests.runner.tiers import full_only
from tests.scripted_engine import ScriptedEngine

STEPS = 4
SAVED = 2
"""Steps between checkpoints."""
STOP_AT = 3
"""The step, counted from 0, in which the run is interrupted."""

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
    # None are kept: those that a process has lost are made again in other company, and rounded
    # otherwise.
    "embedding_store_gib": 1e-9,
}
KEPT: dict[str, object] = {
    "embedding_store_gib": 1.0,
    "freeze_vision_tower": True,
    "freeze_projector": True,
}
"""With --embedding-cache-dir no embeddings are lost."""
PPO: dict[str, object] = {
    "rl_algorithm": "ppo",
    "critic_lr": 5e-3,
    "critic_iterations": 2,
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
        # After the second step the greedy answer is right for the first time.
        return (step == 1 and index == 0) or (number + index + step) % 2 == 0

    engine = ScriptedEngine(is_right)
    monkeypatch.setattr(build, "build_engine", lambda *_: engine)
    if stop_at is None:
        train(config)
    else:
        with pytest.raises(Interrupted):
            train(config)
    return engine


def folder_of(config: Config) -> Path:
    assert config.checkpoint.save is not None
    return Path(config.checkpoint.save)


def metrics_without_sources(config: Config) -> list[dict[str, float]]:
    """All steps of a run, but for where embeddings were kept."""
    return [
        {name: value for name, value in step.items() if not name.startswith("embeddings_from")}
        for step in metrics_of(folder_of(config))
    ]


WARM_UP: dict[str, object] = {"critic_warmup_steps": 3}
TRAINED: dict[str, object] = {"critic_warmup_steps": 1}
CASES: dict[str, tuple[dict[str, object], dict[str, Any]]] = {
    "PPO, DP2, in the critic's warm-up": (PPO | WARM_UP, {}),
    "PPO, TP2, in the critic's warm-up": (PPO | WARM_UP, TP2),
    "PPO, PP2": (PPO | TRAINED, PP2),
    "PPO, MR-SP2, embeddings on disk": (PPO | TRAINED, CP2 | KEPT),
    "adaptive KL, MR-SP2": (ADAPTIVE, CP2),
}


@pytest.mark.parametrize(
    "case",
    full_only(
        "tests/distributed/test_rl_resume.py::test_an_interrupted_run",
        CASES,
        ["PPO, TP2, in the critic's warm-up", "adaptive KL, MR-SP2"],
    ),
)
def test_an_interrupted_run(tiny_data, shared_path, monkeypatch, case):
    options, layout = CASES[case]
    places: dict[str, dict[str, object]] = {
        name: {"save": str(shared_path / name), "load": str(shared_path / name)}
        for name in ("whole", "parts")
    }
    if "freeze_projector" in layout:
        for name, place in places.items():
            place["embedding_cache_dir"] = str(shared_path / f"{name}-embeddings")
    # Fewer than replicas in DP2.
    question = (tiny_data / "train.jsonl").read_text().splitlines()[2]
    heldout = shared_path / "heldout.jsonl"
    if dist.get_rank() == 0:
        heldout.write_text(question)
    dist.barrier()
    rest = COMMON | {"valid_data_path": [str(heldout)]} | options | layout
    configs = {name: tiny_config(tiny_data, **(rest | place)) for name, place in places.items()}
    whole = run(configs["whole"], monkeypatch, None)
    run(configs["parts"], monkeypatch, STOP_AT)
    again = run(configs["parts"], monkeypatch, None)

    # The engine hears of weights that have changed: not after the first step, whose learning rate
    # is 0, nor in the critic's warm-up.
    warm_up = configs["whole"].algorithm.critic_warmup_steps
    idle = max(1, warm_up)
    assert len(set(whole.digests)) == len(whole.digests) == 1 + STEPS - idle
    assert again.digests == whole.digests[max(0, SAVED - idle) :]
    steps = metrics_without_sources(configs["whole"])
    assert metrics_without_sources(configs["parts"]) == steps
    assert curve(steps, "iteration") == list(range(1, STEPS + 1))
    if warm_up:
        assert all("grad-norm" not in step for step in steps[:warm_up])
        # The policy's schedule has followed iterations meanwhile.
        rate = {1: 1e-3, 3: 1.05e-3}[warm_up]
        assert steps[warm_up]["learning-rate"] == pytest.approx(rate)
        assert len(set(curve(steps, "critic/grad-norm"))) == STEPS
    else:
        assert len(set(curve(steps, "kl/beta"))) == STEPS
    # Of the checkpoints the newest is left, and the best, which was saved before the interruption.
    for config in configs.values():
        assert sorted(iteration_folders(folder_of(config))) == [SAVED, STEPS]
