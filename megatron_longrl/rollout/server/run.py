"""A rollout server in this process."""

from __future__ import annotations

import secrets
import socket
from typing import Any


def run(
    settings: Any,
    tokenizer: tuple[str, str] | None,
    listening: socket.socket,
    token: str,
    log_level: str,
    ready: Any,
) -> None:
    """Serve for ever, in the thread that calls.

    Args:
        settings: :class:`~megatron_longrl.rollout.model_settings.ModelSettings`.
        tokenizer: the type and the model of the tokenizer that finds stop strings; None if there
            are none.
        token: the token of the clients that may send requests.
        ready: called once the server answers.

    Raises:
        UserError: the engine does not start.
    """
    from megatron_longrl.platforms import platform
    from megatron_longrl.rollout.server.http import serve
    from megatron_longrl.rollout.server.service import EngineThread, RolloutServer
    from megatron_longrl.rollout.vllm.process_isolation import unlink_shared_memory

    platform.prepare()
    instance = secrets.token_hex(6)
    server, engine = RolloutServer(settings, instance, log_level, tokenizer), EngineThread()
    unlink_shared_memory(instance)
    serve(server, engine, listening, token)
    ready()
    engine.run()
