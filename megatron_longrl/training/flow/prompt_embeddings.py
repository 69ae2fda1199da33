"""Embeddings of prompts, made once for each distinct text and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from megatron_longrl.training.flow.rows import TextEmbedding


class PromptEmbeddings:
    """The embeddings of all prompts that a run has seen.

    Args:
        encode: texts -> [n, t, d] of all tokens and [n, e] of whole prompts.
    """

    def __init__(self, encode: Callable[[Sequence[str]], tuple[Tensor, Tensor]]) -> None:
        self._encode = encode
        self._known: dict[str, TextEmbedding] = {}
        self.encoded = 0
        """Texts that went through the text encoders."""

    def of(self, texts: Sequence[str]) -> list[TextEmbedding]:
        """The embeddings of texts, in their order."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            tokens, pooled = self._encode(new)
            self.encoded += len(new)
            for text, of_tokens, whole in zip(new, tokens, pooled, strict=True):
                # Copies, which do not keep the others' memory.
                self._known[text] = TextEmbedding(of_tokens.clone(), whole.clone())
        return [self._known[text] for text in texts]
