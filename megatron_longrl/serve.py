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
import sys
from collections.abc import Sequence

from megatron_longrl.cli.launch import launch
from megatron_longrl.config import Config
from megatron_longrl.errors import UserError

logger = logging.getLogger(__name__)


def serve_recipe(config: Config) -> None:
    """Serve the model of a recipe."""
    from megatron_longrl.data.tokenizer import build_tokenizer
    from megatron_longrl.rollout.build import model_settings
    from megatron_longrl.rollout.server.address import listen
    from megatron_longrl.rollout.server.guard import known_token
    from megatron_longrl.rollout.server.run import run

    if len(config.rollout.server_address) != 1:
        raise UserError("give the server one --rollout-server-address HOST:PORT to listen on")
    (address,) = config.rollout.server_address
    token = known_token(config.rollout.token_file)
    tokenizer = build_tokenizer(config.data.tokenizer_type, config.data.tokenizer_model)
    if config.model.vocab_size is None:
        config = config.replace(vocab_size=tokenizer.vocab_size)
    listening = listen(address)
    run(
        model_settings(config, config.rollout, config.rollout_model_len, tokenizer),
        tokenizer.origin,
        listening,
        token,
        config.logging.log_level,
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
