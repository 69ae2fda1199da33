"""Whether a GPU image holds what it was built for; the build ends here where it does not.

    python docker/check.py

megatron-core goes on silently without a Transformer Engine that does not load, and pip may have
replaced a torch that other packages were built against: neither shows before the first training
step. No GPU is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements" / "gpu.txt"


def main() -> int:
    """Tell every problem in a line of its own; the exit status is 1 where there is one."""
    problems = [*other_versions(LOCK), *unloaded()]
    for problem in problems:
        sys.stderr.write(f"error: {problem}\n")
    return int(bool(problems))


def other_versions(lock: Path) -> Iterator[str]:
    """Packages that are not installed as the lock file says."""
    for line in lock.read_text(encoding="utf-8").splitlines():
        name, is_pin, wanted = line.partition("==")
        if not is_pin or line.startswith("#"):
            continue
        try:
            found = version(name)
        except PackageNotFoundError:
            yield f"{name} is not installed, but {lock.name} names {wanted}"
            continue
        if found != wanted:
            yield f"{name} is {found}, but {lock.name} names {wanted}"


def unloaded() -> Iterator[str]:
    """What is there and does not load, or is built for something else."""
    import torch

    if (torch.version.cuda or "").partition(".")[0] != "13":
        yield f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, not for 13"
    try:
        import transformer_engine.pytorch  # noqa: F401
    except Exception as error:
        yield f"transformer_engine.pytorch does not load: {type(error).__name__}: {error}"
    from megatron.core.extensions.transformer_engine import HAVE_TE

    if not HAVE_TE:
        yield "megatron-core does without Transformer Engine, which it could not import"
    for name in ("nvidia.dali.plugin.pytorch", "vllm", "megatron_longrl.train_rl"):
        try:
            __import__(name)
        except Exception as error:
            yield f"{name} does not load: {type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
