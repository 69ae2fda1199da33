"""The rollout server that a trainer starts: ``python -m megatron_longrl.rollout.server.child``.

Standard input is {"parent": its process, "ready": a file descriptor, "token", "log_level",
"settings", "tokenizer", "plugins": modules to import}. Once it answers, the address is written to
that descriptor. It ends with the trainer's process.
"""

from __future__ import annotations

import json
import os
import sys

from megatron_longrl.errors import UserError
from megatron_longrl.plugins import import_plugins
from megatron_longrl.processes.parent_death import serve_only


def main() -> int:
    """Entry point; returns the exit status."""
    orders = json.load(sys.stdin)
    serve_only(orders["parent"])
    from megatron_longrl.observability.logging import configure_logging
    from megatron_longrl.rollout.model_settings import ModelSettings
    from megatron_longrl.rollout.server.address import listen
    from megatron_longrl.rollout.server.run import run

    configure_logging(orders["log_level"], 0)
    listening = listen("127.0.0.1:0")
    address = "{}:{}".format(*listening.getsockname())

    def ready() -> None:
        with os.fdopen(orders["ready"], "w") as pipe:
            pipe.write(json.dumps({"address": address}))

    try:
        import_plugins(orders["plugins"])
        settings = ModelSettings(**orders["settings"])
        origin = orders["tokenizer"] and tuple(orders["tokenizer"])
        run(settings, origin, listening, orders["token"], orders["log_level"], ready)
    except UserError as error:
        with os.fdopen(orders["ready"], "w") as pipe:
            pipe.write(json.dumps({"error": str(error)}))
    return 2


if __name__ == "__main__":
    sys.exit(main())
