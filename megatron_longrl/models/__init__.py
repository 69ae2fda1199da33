"""Model families on megatron-core: a folder for each, with its settings, layers, layout of media
and weight mapping.
"""

from __future__ import annotations

BUILT_IN = ("vila", "qwen2", "qwen3", "llama", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni")
"""The families of language models of the package by name; the module ``family`` in the folder of
that name holds each."""
