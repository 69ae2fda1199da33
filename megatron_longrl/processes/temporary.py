"""A temporary folder for a process and what it starts, which goes with it."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_longrl.processes.leftovers import leftovers, remove


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """TMPDIR of all that is started in the block.

    torchrun, vLLM and wandb leave their folders behind if a run is killed. This one goes behind the
    block, and also when this process is killed.
    """
    before, shared = os.environ.get("TMPDIR"), tempfile.gettempdir()
    _keep_compiled(shared)
    folder = Path(tempfile.mkdtemp(prefix="longrl-"))
    leftovers.add(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        remove(folder)
        leftovers.discard(folder)


def _keep_compiled(shared: str) -> None:
    """Leave compiled code where torch.compile puts it, because other runs can use it."""
    with contextlib.suppress(KeyError, OSError):  # a user without a name
        name = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
        place = os.path.join(shared, f"torchinductor_{name}")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", place)
