"""The kinds of rollout engines by name.

Only declarations are here; the engines are in :mod:`megatron_longrl.rollout`, and imported when a
run uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from megatron_longrl.config.section import Names, is_name_in
from megatron_longrl.registry import Registry, instance_of, loaded


@dataclass(frozen=True)
class EngineKind:
    """An engine that ``--rollout-engine`` names."""

    build: Callable[..., Any] | str
    """The function, or ``module:name`` of it, that takes an
    :class:`~megatron_longrl.rollout.build.EngineContext` and starts the engine, a
    :class:`~megatron_longrl.rollout.engine.RolloutEngine`; collective over the world."""
    rules: Callable[[Any], Iterator[str]] | str | None = None
    """The function, or ``module:name`` of it, that gives a line for every rule across fields of the
    configuration that does not hold."""
    needs_vllm: bool = False
    """Whether vLLM has to be installed."""

    def start(self, context: Any) -> Any:
        """Start the engine."""
        return loaded(self.build)(context)

    def broken_rules(self, config: Any) -> Iterator[str]:
        """A line for every rule that does not hold."""
        if self.rules is not None:
            yield from loaded(self.rules)(config)


_BUILD = "megatron_longrl.rollout.build:"
_VLLM = "megatron_longrl.rollout.rules:vllm_rules"

ENGINES: Registry[EngineKind] = Registry(
    "rollout engine",
    "megatron_longrl.engines",
    {
        "colocated": EngineKind(_BUILD + "colocated", _VLLM, needs_vllm=True),
        "server": EngineKind(_BUILD + "server", _VLLM, needs_vllm=True),
        "megatron": EngineKind(_BUILD + "megatron"),
    },
    problem=instance_of(EngineKind),
)
"""The engines by ``--rollout-engine``."""

EngineName = Annotated[str, Names(ENGINES.names), is_name_in(ENGINES)]
