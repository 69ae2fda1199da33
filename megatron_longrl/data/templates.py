"""Chat templates: what stands around a question and before its response."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_longrl.errors import UserError


@dataclass(frozen=True)
class Template:
    """Media embeddings stand between ``before_media`` and the question."""

    before_media: str
    after_question: str


TEMPLATES = {
    "qwen2": Template("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "qwen2_system": Template(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    # As VILA and LongVILA were trained: Qwen2's form, and a system turn without a full stop.
    "vila": Template(
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "plain": Template("", "\n"),
}
"""By the name that --chat-template gives."""


def find_template(name: str) -> Template:
    """The template of a name.

    Raises:
        UserError: there is none.
    """
    if name not in TEMPLATES:
        raise UserError(f"--chat-template {name} is not known: use one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
