"""Tokenizers: SentencePiece models trained here, and Hugging Face's."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

from megatron_longrl.atomic_file import atomic_write
from megatron_longrl.config.sizes import LARGEST_VOCABULARY
from megatron_longrl.data.template_process import CHAT, template_process
from megatron_longrl.data.tokenizer_settings import (
    end_ids_of,
    largest_id,
    template_of_processor,
)
from megatron_longrl.errors import UserError
from megatron_longrl.regular_file import LARGEST_TEXT, check_regular

END_OF_TURN = "<|im_end|>"
"""Ends every turn of a conversation, and with it a response."""

Message = Mapping[str, Any]
"""A message of a conversation: ``role`` and ``content``, which is a text or a list of parts, as
chat templates take them."""

_CHAT_SYMBOLS = ("<|im_start|>", END_OF_TURN)

_SPACE = "\u2581"  # SentencePiece writes spaces as this character


class Tokenizer(Protocol):
    """Text to ids and back, without loss: ``decode(encode(text)) == text``."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""

    @property
    def unused_ids(self) -> Sequence[range]:
        """Ids below ``vocab_size`` that have no token, ascending and disjoint."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a response: where transformers' ``generate`` stops."""

    @property
    def eos_id(self) -> int:
        """The end token of a demonstration whose template has none."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of conversations that comes with the tokenizer; None: it has none."""

    @property
    def pad_id(self) -> int:
        """Fills rows."""

    @property
    def media_id(self) -> int:
        """A valid id for the placeholders of media; its embedding is never used."""

    def id_of(self, symbol: str) -> int:
        """Id of a special token.

        Raises:
            UserError: there is no such token.
        """

    def encode(self, text: str) -> list[int]:
        """Ids of a text; special tokens written in it are recognised, none are added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included; ids without a token have none."""

    def render(self, messages: Sequence[Message], template: str, *, asks: bool) -> str:
        """A conversation as text.

        Args:
            template: the template, in Jinja.
            asks: whether the opening of an assistant's turn follows.
        """

    def files(self) -> list[Path]:
        """Files that an exported model needs."""

    @property
    def origin(self) -> tuple[str, str]:
        """Type and model with which :func:`build_tokenizer` makes the same one elsewhere."""


class SentencePieceTokenizer:
    """A SentencePiece model file."""

    def __init__(self, model: str | Path) -> None:
        self.path = Path(model)
        self.origin = ("SentencePieceTokenizer", str(self.path.absolute()))
        if not self.path.is_file():
            raise UserError(f"--tokenizer-model {model}: no such SentencePiece model file")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        except (RuntimeError, OSError):
            raise UserError(
                f"--tokenizer-model {model}: not a SentencePiece model; for a Hugging Face "
                "tokenizer give its folder and --tokenizer-type HuggingFaceTokenizer"
            ) from None
        self.vocab_size = int(self._model.vocab_size())
        self.unused_ids: Sequence[range] = ()
        self.chat_template: str | None = None
        own = int(self._model.piece_to_id(END_OF_TURN))
        own = int(self._model.eos_id()) if own == self._model.unk_id() else own
        if own < 0:
            raise UserError(
                f"--tokenizer-model {model}: the model has neither {END_OF_TURN} nor an end of text"
            )
        self.end_ids = end_ids_of(self.path.parent, range(self.vocab_size)) or (own,)
        self.eos_id = own if own in self.end_ids else self.end_ids[0]
        self.pad_id = max(int(self._model.pad_id()), 0)
        self.media_id = self.pad_id

    def id_of(self, symbol: str) -> int:
        """Id of a symbol."""
        found = int(self._model.piece_to_id(symbol))
        if found == self._model.unk_id():
            raise UserError(f"--tokenizer-model {self.path}: the model has no symbol {symbol}")
        return found

    @cached_property
    def _space_bytes(self) -> list[int]:
        return [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        # The library would turn the character that it keeps for spaces into a space.
        first, *others = text.split(_SPACE)
        ids = list(self._model.encode(first))
        for other in others:
            ids += self._space_bytes + list(self._model.encode(other))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return str(self._model.decode([int(i) for i in ids if 0 <= i < self.vocab_size]))

    def render(self, messages: Sequence[Message], template: str, *, asks: bool) -> str:
        """A conversation as text."""
        return _render(messages, template, asks, {})

    def files(self) -> list[Path]:
        """The model file."""
        return [self.path]


class HuggingFaceTokenizer:
    """A folder with a Hugging Face tokenizer; nothing is downloaded, no code of it is run."""

    def __init__(self, model: str | Path) -> None:
        # transformers takes a second to import, and SentencePiece users do not need it.
        from transformers import AutoTokenizer

        self.path = Path(model)
        self.origin = ("HuggingFaceTokenizer", str(self.path.absolute()))
        if not self.path.is_dir():
            raise UserError(f"--tokenizer-model {model}: no such folder")
        check_regular(self.path, LARGEST_TEXT)
        self._check_id(largest_id(self.path))
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(self.path), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # Whatever the libraries make of the folder's files.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"--tokenizer-model {model}: no Hugging Face tokenizer in this folder ({reason})"
            ) from None
        known = self._tokenizer.get_vocab()
        self._check_id(max(known.values(), default=0))
        self._ids = frozenset(known.values())
        self.vocab_size = max(len(self._tokenizer), max(self._ids, default=-1) + 1)
        self.unused_ids: Sequence[range] = _gaps(self._ids, self.vocab_size)
        own = self._tokenizer.eos_token_id
        own = known.get(END_OF_TURN) if own is None else int(own)
        self.end_ids = end_ids_of(self.path, self._ids) or (() if own is None else (own,))
        if not self.end_ids:
            raise UserError(
                f"--tokenizer-model {model}: no token ends a response: set eos_token in "
                "tokenizer_config.json, or eos_token_id in generation_config.json"
            )
        self.eos_id = own if own is not None and own in self.end_ids else self.end_ids[0]
        self.chat_template = template_of_processor(self.path) or self._own_template()
        pad = self._tokenizer.pad_token_id
        self.pad_id = self.eos_id if pad is None else int(pad)
        self.media_id = self.pad_id

    def id_of(self, symbol: str) -> int:
        """Id of a special token."""
        found = self._tokenizer.get_vocab().get(symbol)
        if found is None:
            raise UserError(f"--tokenizer-model {self.path}: the tokenizer has no token {symbol}")
        return int(found)

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return str(
            self._tokenizer.decode(
                [int(i) for i in ids if i in self._ids],
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
        )

    def render(self, messages: Sequence[Message], template: str, *, asks: bool) -> str:
        """A conversation as text."""
        symbols = {name: str(symbol) for name, symbol in self._tokenizer.special_tokens_map.items()}
        return _render(messages, template, asks, symbols)

    def _check_id(self, largest: int) -> None:
        if largest >= LARGEST_VOCABULARY:
            raise UserError(
                f"--tokenizer-model {self.path}: a token has the id {largest}, and no vocabulary "
                f"has more than {LARGEST_VOCABULARY} tokens"
            )

    def _own_template(self) -> str | None:
        """The one that is used by default where there are several."""
        found = self._tokenizer.chat_template
        if isinstance(found, dict):
            found = found.get("default")
        return str(found) if found else None

    def files(self) -> list[Path]:
        """The tokenizer's files, by the names that Hugging Face gives them."""
        names = (
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
            "special_tokens_map.json",
            "added_tokens.json",
            "chat_template.jinja",
            "tokenizer.model",
        )
        return [self.path / name for name in names if (self.path / name).is_file()]


def _render(
    messages: Sequence[Message], template: str, asks: bool, symbols: Mapping[str, str]
) -> str:
    """A conversation as transformers' ``apply_chat_template`` writes it."""
    conversation = {
        "messages": list(messages),
        "tools": None,
        "documents": None,
        "add_generation_prompt": asks,
    }
    return template_process.render(CHAT, template, {**conversation, **symbols})


def ending(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """Return the number of end tokens that close a response."""
    length = len(ids)
    while length and ids[length - 1] in tokenizer.end_ids:
        length -= 1
    return len(ids) - length


def ids_without_token(tokenizer: Tokenizer, vocab_size: int) -> list[tuple[int, int]]:
    """Rows of word embeddings that have no token, as ranges (first, behind the last).

    Args:
        vocab_size: rows of the model; published checkpoints have more than their tokenizer.
    """
    ranges: list[tuple[int, int]] = []
    for unused in (*tokenizer.unused_ids, range(tokenizer.vocab_size, vocab_size)):
        first, behind = unused.start, min(unused.stop, vocab_size)
        if behind <= first:
            continue
        if ranges and ranges[-1][1] == first:
            ranges[-1] = (ranges[-1][0], behind)
        else:
            ranges.append((first, behind))
    return ranges


def _gaps(ids: Collection[int], behind: int) -> list[range]:
    """The ids below ``behind`` that are not among ``ids``."""
    bounds = [-1, *sorted(ids), behind]
    return [range(a + 1, b) for a, b in pairwise(bounds) if b > a + 1]


TOKENIZERS: dict[str, Callable[[str | Path], Tokenizer]] = {
    "SentencePieceTokenizer": SentencePieceTokenizer,
    "HuggingFaceTokenizer": HuggingFaceTokenizer,
}
"""Tokenizer classes by Megatron's name for them."""


def build_tokenizer(kind: str, model: str | Path) -> Tokenizer:
    """The tokenizer of ``--tokenizer-type`` and ``--tokenizer-model``.

    Raises:
        UserError: the kind is not known, or the model cannot be read.
    """
    if kind not in TOKENIZERS:
        raise UserError(f"--tokenizer-type {kind} is not known: use one of {', '.join(TOKENIZERS)}")
    if not str(model):
        raise UserError("--tokenizer-model is not set: give a SentencePiece file or a folder")
    return TOKENIZERS[kind](model)


def train_sentencepiece(
    texts: Iterable[str],
    model_prefix: str | Path,
    vocab_size: int,
    user_defined_symbols: Sequence[str] = (),
) -> Path:
    """Train a byte-pair SentencePiece model that keeps every text unchanged.

    Args:
        texts: the texts on which the tokenizer is trained.
        model_prefix: the model is written to ``<model_prefix>.model``.
        vocab_size: upper bound of the vocabulary: 258 bytes and controls, the symbols, then
            merges; texts with little variety give fewer.
        user_defined_symbols: strings that are always one token. The turn symbols and the
            newline are added.

    Returns:
        The path of the model.

    Raises:
        UserError: ``vocab_size`` is too small for bytes, symbols and characters.
    """
    # Inside the library a space is another character, also in the symbols.
    symbols = [
        symbol.replace(" ", _SPACE)
        for symbol in dict.fromkeys((*_CHAT_SYMBOLS, "\n", *user_defined_symbols))
    ]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            user_defined_symbols=symbols,
            # No text is changed: nothing normalised, no space added, any byte has a piece.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            character_coverage=1.0,
            unk_id=0,
            pad_id=1,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,  # the same model on every machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"{model_prefix}.model: cannot train with vocab_size {vocab_size}: "
            f"{' '.join(str(error).split())}"
        ) from None
    path = Path(f"{model_prefix}.model")
    with atomic_write(path) as aside:
        aside.write_bytes(model.getvalue())
    return path
