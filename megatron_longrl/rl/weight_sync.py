"""Synchronisation of the rollout engine with the policy: it gets the weights that have changed, and
no others.

The cache that an engine keeps of a prompt depends on the language model's weights and on the
embeddings, which depend on the encoder's. An update that was skipped, one at learning rate 0 (the
first of a warm-up), a step in which only a critic learns, or one without anything to learn from
changes neither: nothing is sent, and the engine keeps its cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from megatron_longrl.conversion.mapping import weight_stream
from megatron_longrl.experience.rollouts import EngineStats
from megatron_longrl.parallel.rank_errors import gather_objects
from megatron_longrl.rollout.engine import RolloutEngine
from megatron_longrl.rollout.weights.receiver import WeightIterator
from megatron_longrl.training.runtime import Runtime


class WeightSync:
    """Keeps an engine up to date with the model of a run.

    Args:
        state: the state that :meth:`state` returned when the run was saved: versions count on from
            there.
    """

    def __init__(
        self, runtime: Runtime, engine: RolloutEngine, state: Mapping[str, Any] | None = None
    ) -> None:
        self._runtime = runtime
        self._engine = engine
        self._versions = (-1, -1)
        """Versions of the language model and the encoders that the engine has."""
        self._sent = int((state or {}).get("weights_sent", 0))

    def __call__(self) -> None:
        """Send what has changed; collective over the replica, and the same choice on every rank."""
        model, runtime = self._runtime.model, self._runtime
        language, encoder = self._versions
        resets = self._engine.stats.cache_resets
        if language != model.policy_version:
            weights = WeightIterator(
                lambda: weight_stream(model.modules, runtime.config, runtime.groups)
            )
            self._engine.update_weights(weights, self._sent)
            self._sent += 1
        # An engine that finds each weight as it was, though updates were made, keeps its prompts.
        if encoder != model.encoder_version and self._engine.stats.cache_resets == resets:
            self._engine.reset_prefix_cache()
        self._versions = (model.policy_version, model.encoder_version)

    @property
    def version(self) -> int:
        """Return the version of the present weights, which the engine has after the next call."""
        return self._sent - (self._versions[0] == self._runtime.model.policy_version)

    def state(self) -> dict[str, Any]:
        """Return the state for a resumed run, whose engine gets the newest weights again, under
        their version."""
        return {"weights_sent": self._sent - 1}

    def metrics(self, before: EngineStats) -> dict[str, float]:
        """Return what has been sent to the engines, over all ranks; collective over the world.

        Args:
            before: the engine's traffic at the moment from which on to count.
        """
        now, then = asdict(self._engine.stats), asdict(before)
        mine = {name: now[name] - then[name] for name in now}
        everyone = gather_objects(self._runtime.groups.gloo_group, mine)
        total = {name: sum(part[name] for part in everyone) for name in now}
        return {
            "weights_sent": mine["weight_updates"],
            "prefix_cache_resets": mine["cache_resets"],
            "prompt_bytes_per_prompt": total["prompt_bytes"] / max(total["prompts"], 1),
        }
