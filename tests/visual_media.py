"""The videos and images of a prompt, for tests of models that see."""

from __future__ import annotations

from megatron_longrl.data.prompts import Prompt
from megatron_longrl.media.modalities.visual.spec import VisualSpec


def visual(prompt: Prompt) -> list[VisualSpec]:
    """A prompt's media, all of which are videos or images."""
    found = [spec for spec in prompt.media if isinstance(spec, VisualSpec)]
    assert len(found) == len(prompt.media)
    return found
