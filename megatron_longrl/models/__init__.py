"""Model families on megatron-core: a folder for each, with its settings, layers, layout of media
and weight mapping.
"""

from __future__ import annotations

from megatron_longrl.config.family import FAMILY_SECTIONS
from megatron_longrl.models.qwen2_5_omni.config import OmniSection
from megatron_longrl.models.qwen2_5_vl.config import Qwen25VLSection
from megatron_longrl.models.qwen3_vl.config import Qwen3VLSection
from megatron_longrl.models.text.config import TextSection
from megatron_longrl.models.vila.config import VilaSection

FAMILY_SECTIONS.register("vila", VilaSection)
for _name in ("qwen2", "qwen3", "llama"):
    FAMILY_SECTIONS.register(_name, TextSection)
FAMILY_SECTIONS.register("qwen2_5_vl", Qwen25VLSection)
FAMILY_SECTIONS.register("qwen3_vl", Qwen3VLSection)
FAMILY_SECTIONS.register("qwen2_5_omni", OmniSection)
