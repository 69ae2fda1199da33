"""The typed configuration: YAML recipes and flags that are spelled as in Megatron.

Fields are documented in the files of their sections.
"""

from __future__ import annotations

from megatron_longrl.config.model_config import ModelConfig
from megatron_longrl.config.schema import Config, Entry

__all__ = ["Config", "Entry", "ModelConfig"]
