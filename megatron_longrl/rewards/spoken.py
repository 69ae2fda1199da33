"""Responses as rewards see them: without the token that ends them, with the thought that the prompt
has begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_longrl.rewards.answer import END_OF_TURN, visible

if TYPE_CHECKING:
    from megatron_longrl.data.prompts import Prompt
    from megatron_longrl.data.tokenizer import Tokenizer

_TAIL = 8  # tokens at the end of a prompt among which a thought may be opened
_OPENED = "<think>"


class Spoken:
    """What a model has said.

    Chat templates of thinking models end the prompt with ``<think>``. What the model writes then
    begins inside the thought, and rewards see it with the tag.

    Args:
        tokenizer: without one, ``<|im_end|>`` ends responses, and no prompt begins a thought.
    """

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = (END_OF_TURN,) if tokenizer is None else end_tokens(tokenizer)

    def __call__(self, prompt: Prompt, text: str) -> str:
        """The response of which ``text`` is the decoded tokens."""
        return self._before(prompt) + visible(text, self._end_tokens)

    def _before(self, prompt: Prompt) -> str:
        if self._tokenizer is None:
            return ""
        tail = self._tokenizer.decode(prompt.token_ids[-_TAIL:].tolist()).rstrip()
        return _OPENED if tail.endswith(_OPENED) else ""


def end_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Texts of the tokens at which generation stops."""
    return (tokenizer.decode([tokenizer.eos_id]),)
