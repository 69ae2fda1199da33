"""transformers' own model of a checkpoint, with which a family's model is compared.

A family names the function that makes the arguments of the model's call for a prompt
(:attr:`~megatron_longrl.models.family.Family.reference`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.models.family import family_of, find_family
from megatron_longrl.registry import loaded

if TYPE_CHECKING:
    from megatron_longrl.config import ModelConfig
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.media.spec import UnitTensors

WITHOUT_ITS_CODE = {
    "local_files_only": True,
    # Else transformers asks on the terminal whether it may run what the folder brings.
    "trust_remote_code": False,
    "use_safetensors": True,
}
"""Options by which transformers loads a folder without running code in it."""


class HfSource(Protocol):
    """A Hugging Face checkpoint, see :class:`~megatron_longrl.conversion.hf.HfFolder`."""

    folder: Path
    config: Mapping[str, Any]
    """The values of its ``config.json``."""

    def read(self, name: str) -> Tensor:
        """Read a tensor by its name in the mapping table."""


Reference = Callable[
    [Any, "HfSource", "ModelConfig", "Prompt", "Sequence[UnitTensors]"], dict[str, Any]
]
"""(transformers' model, checkpoint, configuration, prompt, units of each of its media) -> the
arguments of the model's call, whose output has ``logits`` [1, P, v]."""


def load_model(folder: Path) -> Any:
    """Load transformers' own model of a folder, in float32.

    Raises:
        UserError: the folder is of no family that is known.
    """
    import transformers

    settings: Any = transformers.AutoConfig.from_pretrained(folder, **WITHOUT_ITS_CODE)
    family = find_family(family_of(settings.to_dict(), folder))
    if family.hf_settings:
        settings = getattr(settings, family.hf_settings, settings)
    kind = getattr(transformers, family.hf_class)
    model = kind.from_pretrained(folder, config=settings, dtype=torch.float32, **WITHOUT_ITS_CODE)
    return model.eval()


def text_reference(
    model: Any,
    source: HfSource,
    config: ModelConfig,
    prompt: Prompt,
    units: Sequence[UnitTensors],
) -> dict[str, Any]:
    """The :data:`Reference` of families that are compared by text.

    Raises:
        UserError: the prompt has media.
    """
    if units:
        raise UserError(
            f"model_family {config.model.family} is compared by text only: leave --video and "
            "--image out"
        )
    return {"input_ids": prompt.token_ids[None]}


@torch.no_grad()
def reference_logits(
    source: HfSource, config: ModelConfig, prompt: Prompt, units: Sequence[UnitTensors]
) -> Tensor:
    """Compute the logits [P, v] of a prompt by transformers' model, in float32.

    Args:
        config: the configuration of the checkpoint's model.
        units: for each medium of the prompt, the units that its encoder takes.

    Raises:
        UserError: the family is not compared on such a prompt.
    """
    family = find_family(config.model.family)
    reference: Reference = loaded(family.reference)
    model = load_model(source.folder / family.folders["llm"])
    logits: Tensor = model(**reference(model, source, config, prompt, units)).logits[0]
    return logits
