"""Stop strings in an engine that has no tokenizer: vLLM's own search, on text decoded by ours.

vLLM looks for stop strings where it detokenizes, and ends the request in the scheduler within the
same step. Its detokenizers need a Hugging Face tokenizer; the project's may be SentencePiece.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    from megatron_longrl.data.tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"


class StopDetokenizer(BaseIncrementalDetokenizer):
    """Decodes a response token by token.

    Args:
        parameters: the sampling parameters of the request, with its stop strings.
        prefix: tokens that an earlier generation has drawn: a stop string may begin in them.
    """

    def __init__(
        self, tokenizer: Tokenizer, parameters: SamplingParams, prefix: Sequence[int] = ()
    ) -> None:
        super().__init__(cast("EngineCoreRequest", SimpleNamespace(sampling_params=parameters)))
        self._tokenizer = tokenizer
        self._context = 0
        self._done = 0
        """Tokens whose text is out; those from ``_context`` on are decoded with what follows, as
        a token's text depends on the one before (spaces, bytes of one character)."""
        self._num_given = len(prefix)
        for token_id in prefix:
            self.token_ids.append(token_id)
            self.output_text += self.decode_next(token_id)

    @property
    def output_token_ids(self) -> list[int]:
        """Tokens that this generation has drawn."""
        return self.token_ids[self._num_given :]

    def num_output_tokens(self) -> int:
        """Return the number of output tokens."""
        return len(self.token_ids) - self._num_given

    def decode_next(self, next_token_id: int) -> str:
        """The text that the newest of ``token_ids`` adds; none until its characters are whole."""
        before = self._tokenizer.decode(self.token_ids[self._context : self._done])
        text = self._tokenizer.decode(self.token_ids[self._context :])
        if len(text) <= len(before) or text.endswith(_INCOMPLETE):
            return ""
        self._context, self._done = self._done, len(self.token_ids)
        return text[len(before) :]


def watch_for_stops(
    engine: Any,
    request_id: str,
    tokenizer: Tokenizer,
    parameters: SamplingParams,
    prefix: Sequence[int] = (),
) -> None:
    """Let a request of an ``LLMEngine`` end at its stop strings, from its first token on.

    Args:
        request_id: the id that ``add_request`` returned.
        prefix: see :class:`StopDetokenizer`.
    """
    state = engine.output_processor.request_states[request_id]
    state.detokenizer = StopDetokenizer(tokenizer, parameters, prefix)
