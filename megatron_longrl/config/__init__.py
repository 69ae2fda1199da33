"""One typed configuration: YAML recipes and flags spelled as Megatron spells them.

`load_config(argv, entry)` gives a checked `Config`; fields are documented in the section files.
"""

from __future__ import annotations

from megatron_longrl.cli.load import load_config, to_yaml
from megatron_longrl.config.schema import Config, Entry

__all__ = ["Config", "Entry", "load_config", "to_yaml"]
