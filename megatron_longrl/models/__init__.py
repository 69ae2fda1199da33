"""Model families on megatron-core: a folder for each, with its settings, layers, layout of media
and weight mapping.
"""

from __future__ import annotations

from megatron_longrl.config.family import FAMILY_SECTIONS, FamilySection
from megatron_longrl.models.qwen2_5_omni.config import OmniSection
from megatron_longrl.models.qwen2_5_vl.config import Qwen25VLSection
from megatron_longrl.models.qwen3_vl.config import Qwen3VLSection
from megatron_longrl.models.sd3.config import SD3Section
from megatron_longrl.models.text.config import TextSection
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.wan.config import WanSection

BUILT_IN: dict[str, type[FamilySection]] = {
    "vila": VilaSection,
    "qwen2": TextSection,
    "qwen3": TextSection,
    "llama": TextSection,
    "qwen2_5_vl": Qwen25VLSection,
    "qwen3_vl": Qwen3VLSection,
    "qwen2_5_omni": OmniSection,
}
"""The families of the package by name, each with its section; the module ``family`` in the folder
of that name holds the rest."""

for _name, _section in BUILT_IN.items():
    FAMILY_SECTIONS.register(_name, _section)
FAMILY_SECTIONS.register("sd3", SD3Section)
FAMILY_SECTIONS.register("wan", WanSection)
