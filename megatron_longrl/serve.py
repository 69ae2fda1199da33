"""A rollout server that outlives its trainers, started by hand or as a SLURM step:

    python -m megatron_longrl.serve --config recipe.yaml \\
        --rollout-server-address 0.0.0.0:8100 [flags]

It takes the recipe and the flags of the training run, which gets the same address by name:
``--rollout-engine server --rollout-server-address node7:8100``. Both need the same token, in the
variable ``LONGRL_ROLLOUT_TOKEN`` or by ``--rollout-token-file``; it travels unencrypted, so keep
the address within a network that you trust.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from typing import Any

from megatron_longrl.config import Config
from megatron_longrl.errors import UserError
from megatron_longrl.cli.launch import launch

logger = logging.getLogger(__name__)


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
        settings: :class:`~megatron_longrl.rollout.vllm.model.ModelSettings`.
        tokenizer: its type and model; None: nobody asks for stop strings.
        token: of those who may ask.
        ready: called once the server answers.

    Raises:
        UserError: the engine does not start.
    """
    from megatron_longrl.platforms import platform
    from megatron_longrl.rollout.server.http import serve
    from megatron_longrl.rollout.server.service import EngineThread, RolloutServer
    from megatron_longrl.rollout.vllm.guest import unlink_shared_memory

    platform.prepare()
    instance = secrets.token_hex(6)
    server, engine = RolloutServer(settings, instance, log_level, tokenizer), EngineThread()
    unlink_shared_memory(instance)
    serve(server, engine, listening, token)
    ready()
    engine.run()


def listen(address: str) -> socket.socket:
    """A socket bound to HOST:PORT; port 0 takes a free one.

    Raises:
        UserError: it is no address of this machine, or taken.
    """
    host, port = split_address(address)
    try:
        return socket.create_server((host, port), backlog=64)
    except OSError as error:
        raise UserError(
            f"cannot listen on {address}: {error.strerror}; give another --rollout-server-address"
        ) from error


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--rollout-server-address {address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def serve_recipe(config: Config) -> None:
    """Serve the model of a recipe."""
    from megatron_longrl.data.tokenizer import build_tokenizer
    from megatron_longrl.rollout.build import model_settings
    from megatron_longrl.rollout.server.guard import known_token

    if len(config.rollout_server_address) != 1:
        raise UserError("give the server one --rollout-server-address HOST:PORT to listen on")
    (address,) = config.rollout_server_address
    token = known_token(config.rollout_token_file)
    tokenizer = build_tokenizer(config.tokenizer_type, config.tokenizer_model)
    if config.vocab_size is None:
        config = config.replace(vocab_size=tokenizer.vocab_size)
    listening = listen(address)
    run(
        model_settings(config, tokenizer),
        tokenizer.origin,
        listening,
        token,
        config.log_level,
        lambda: logger.info("rollout server ready on %s, process %d", address, os.getpid()),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    try:
        return launch("serve", serve_recipe, argv)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
