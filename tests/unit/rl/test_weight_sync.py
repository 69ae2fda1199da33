"""An engine hears of weights that have changed, and of no others."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_longrl.experience.rollouts import EngineStats
from megatron_longrl.rl.weight_sync import WeightSync
from megatron_longrl.training.model import TrainedModel


class Listener:
    """Of an engine what hears of weights."""

    def __init__(self, *, keeps_prompts: bool = False) -> None:
        self.heard: list[str] = []
        self.stats = EngineStats()
        self._keeps_prompts = keeps_prompts

    def update_weights(self, named: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.heard.append(f"weights {version}")
        resets = 0 if self._keeps_prompts else 1
        self.stats = self.stats.plus(weight_updates=1, cache_resets=resets)

    def reset_prefix_cache(self) -> None:
        self.heard.append("forget")
        self.stats = self.stats.plus(cache_resets=1)


def model_of(*trained: str) -> TrainedModel:
    """Whose parts of these names are trained."""
    nothing = cast(Any, torch.nn.Module())
    optimizers = cast(Any, dict.fromkeys(trained))
    return TrainedModel(nothing, {"encoder": nothing}, optimizers, optimizer=None, scheduler=None)


def sync_of(model: TrainedModel, engine: Listener, state: dict[str, Any] | None = None) -> Any:
    runtime = SimpleNamespace(model=model, config=None, groups=None)
    return WeightSync(cast(Any, runtime), cast(Any, engine), state)


@pytest.mark.parametrize(
    ("trained", "heard"),
    [
        (["language_model", "encoder"], ["weights 1"]),
        (["language_model"], ["weights 1"]),
        (["encoder"], ["forget"]),
        ([], []),
    ],
)
def test_what_an_update_has_changed(trained: list[str], heard: list[str]) -> None:
    model, engine = model_of(*trained), Listener()
    sync = sync_of(model, engine)
    sync()
    assert engine.heard == ["weights 0"], "it has none yet"
    sync()
    assert engine.heard == ["weights 0"], "nothing was updated"
    model.count_update()
    sync()
    sync()
    assert engine.heard == ["weights 0", *heard]


def test_several_updates_are_told_once() -> None:
    model, engine = model_of("language_model"), Listener()
    sync = sync_of(model, engine)
    sync()
    for _ in range(3):
        model.count_update()
    sync()
    assert engine.heard == ["weights 0", "weights 1"]


def test_an_engine_that_finds_its_weights_unchanged_still_forgets_prompts() -> None:
    """An update may leave every rounded weight of the language model as it is, but not the
    encoder: a server then keeps its prompts, which hold the old embeddings."""
    model, engine = model_of("language_model", "encoder"), Listener(keeps_prompts=True)
    sync = sync_of(model, engine)
    sync()
    model.count_update()
    sync()
    assert engine.heard == ["weights 0", "forget", "weights 1", "forget"]
    only_language = model_of("language_model")
    engine = Listener(keeps_prompts=True)
    sync = sync_of(only_language, engine)
    sync()
    only_language.count_update()
    sync()
    assert engine.heard == ["weights 0", "forget", "weights 1"]


def test_versions_go_on_after_a_resume() -> None:
    model, engine = model_of("language_model"), Listener()
    sync = sync_of(model, engine)
    sync()
    for _ in range(2):
        model.count_update()
        sync()
    resumed = Listener()
    sync = sync_of(again := model_of("language_model"), resumed, sync.state())
    sync()
    again.count_update()
    sync()
    assert engine.heard == ["weights 0", "weights 1", "weights 2"]
    assert resumed.heard == ["weights 2", "weights 3"]


def test_metrics_count_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, engine = model_of("language_model"), Listener()
        runtime = SimpleNamespace(
            model=model, config=None, groups=SimpleNamespace(gloo_group=dist.group.WORLD)
        )
        sync = WeightSync(cast(Any, runtime), cast(Any, engine))
        sync()
        before = engine.stats
        model.count_update()
        sync()
        engine.stats = engine.stats.plus(prompts=4, prompt_bytes=1000)
        assert sync.metrics(before) == {
            "weights_sent": 1,
            "prefix_cache_resets": 1,
            "prompt_bytes_per_prompt": 250,
        }
        assert sync.metrics(engine.stats)["prompt_bytes_per_prompt"] == 0
    finally:
        dist.destroy_process_group()
