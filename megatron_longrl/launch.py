"""What every entry point does around its work: errors in one line, groups ended, exit status."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from megatron_longrl.config import Config, Entry, load_config
from megatron_longrl.errors import UserError

USER_ERROR_STATUS = 2


def launch(entry: Entry, work: Callable[[Config], None], argv: Sequence[str] | None) -> int:
    """Read the configuration and do the work.

    Returns:
        0 when all was done; 2 after a user's error, which rank 0 prints as one line. Any other
        exception goes through, so that torchrun ends the other ranks.
    """
    rank = int(os.environ.get("RANK", "0"))
    try:
        config = load_config(sys.argv[1:] if argv is None else argv, entry)
        from megatron_longrl.training.logging import configure_logging

        configure_logging(config.log_level, rank)
        work(config)
    except UserError as error:
        if rank == 0:
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
        logging.shutdown()
        return USER_ERROR_STATUS
    finally:
        if "torch" in sys.modules:
            from megatron_longrl.parallel.groups import destroy_parallel

            destroy_parallel()
    return 0
