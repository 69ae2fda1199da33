"""Child programs that have torchvision, which the processors of Qwen-VL are written with.

Its CPU build is on PyTorch's own index only. Elsewhere tools/environment.sh puts the wheel of PyPI
into a folder beside the environment. That one cannot load its operators, of which these programs
need none; ``sitecustomize.py`` declares those that its import asks for.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BESIDE = Path(sys.prefix) / "torchvision"


def python_path() -> dict[str, str]:
    """``PYTHONPATH`` of a child program that imports torchvision.

    Raises:
        RuntimeError: it is neither in the environment nor beside it.
    """
    paths = [str(ROOT)]
    if find_spec("torchvision") is None:
        if not BESIDE.is_dir():
            raise RuntimeError(
                f"no torchvision in {BESIDE}: bash tools/environment.sh puts it there"
            )
        paths += [str(Path(__file__).parent), str(BESIDE)]
    return {"PYTHONPATH": os.pathsep.join(paths)}
