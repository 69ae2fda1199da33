"""Declares torchvision's operators before it is imported; Python runs this file when it starts.

vLLM looks at models in processes of its own, which import torchvision, too.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _Declares(MetaPathFinder):
    """Finds nothing; is asked first, once."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            from torch.library import Library

            declared = Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                declared.define(
                    f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor"
                )
            kept.append(declared)


kept: list[Any] = []
"""What is declared is forgotten with its library."""
sys.meta_path.insert(0, _Declares())
