"""Tokenizers: nothing is lost between text and ids, special tokens are single ids."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megatron_longrl.data.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    build_tokenizer,
    train_sentencepiece,
)
from megatron_longrl.errors import UserError

SYMBOLS = ["<think>", "</think>", "<answer>", "</answer>", " Swap left-middle:"]
TEXTS = [
    "<|im_start|>user\nWhere is the ball?\nA. left\nB. right<|im_end|>\n",
    "<think>The ball starts left. Swap left-middle: middle.</think><answer>B</answer>",
]


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("sp")
    return build_tokenizer(
        "SentencePieceTokenizer", train_sentencepiece(TEXTS, folder / "t", 360, SYMBOLS)
    )


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE of Qwen2's kind, saved as a folder."""
    folder = tmp_path_factory.mktemp("hf")
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    return build_tokenizer("HuggingFaceTokenizer", folder)


@pytest.fixture(params=["sentencepiece", "hugging_face"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def random_text(generator: random.Random) -> str:
    words = [
        *SYMBOLS,
        "<|im_start|>",
        "<|im_end|>",
        "ball",
        "Where",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "\u2581",  # the character in which SentencePiece hides spaces
        "é",
        "e\u0301",  # normalisation would join these two
        "ﬁ",
        "日本",
        "🏈",
        "\u00a0",
        "<0x41>",
        "<unk>",
        "<pad>",
        ".",
    ]
    return "".join(generator.choices(words, k=generator.randrange(12)))


def test_decoding_restores_any_text(tokenizer: Tokenizer) -> None:
    generator = random.Random(0)
    for text in ["", *TEXTS, *(random_text(generator) for _ in range(2000))]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_turn_symbols_are_single_ids(tokenizer: Tokenizer) -> None:
    for symbol in ("<|im_start|>", "<|im_end|>"):
        assert len(tokenizer.encode(symbol)) == 1
    assert tokenizer.encode("B<|im_end|>")[-1] == tokenizer.id_of("<|im_end|>")
    assert 0 <= tokenizer.media_id < tokenizer.vocab_size
    assert 0 <= tokenizer.pad_id < tokenizer.vocab_size


def test_text_around_a_symbol_is_encoded_as_if_alone(tokenizer: Tokenizer) -> None:
    """Prompts are encoded in pieces between media; that must not change the ids."""
    left, right = "<|im_start|>user\n", "Where is the ball?<|im_end|>\n"
    assert tokenizer.encode(left + "<|im_end|>" + right) == [
        *tokenizer.encode(left),
        tokenizer.id_of("<|im_end|>"),
        *tokenizer.encode(right),
    ]


def test_sentencepiece_symbols_with_spaces_and_newlines(sentencepiece: Tokenizer) -> None:
    for symbol in (*SYMBOLS, "\n"):
        assert len(sentencepiece.encode(symbol)) == 1
    assert len(sentencepiece.encode("x Swap left-middle: x")) <= 5


def test_sentencepiece_training_is_reproducible(tmp_path: Path) -> None:
    first = train_sentencepiece(TEXTS, tmp_path / "a", 360, SYMBOLS)
    second = train_sentencepiece(TEXTS, tmp_path / "b", 360, SYMBOLS)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.model", "b.model"]


def test_a_vocabulary_larger_than_the_texts_allow_is_an_upper_bound(tmp_path: Path) -> None:
    path = train_sentencepiece(TEXTS, tmp_path / "a", 5000, SYMBOLS)
    assert 300 < SentencePieceTokenizer(path).vocab_size < 5000


def test_files_are_the_ones_an_export_needs(
    sentencepiece: Tokenizer, hugging_face: Tokenizer
) -> None:
    assert [path.name for path in sentencepiece.files()] == ["t.model"]
    assert {"tokenizer.json", "tokenizer_config.json"} <= {p.name for p in hugging_face.files()}
    assert all(path.is_file() for path in hugging_face.files())


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("NoTokenizer", None, "NoTokenizer is not known"),
        ("SentencePieceTokenizer", None, "no such SentencePiece model"),
        ("SentencePieceTokenizer", b"text", "not a SentencePiece model"),
        ("HuggingFaceTokenizer", None, "no such folder"),
        ("HuggingFaceTokenizer", "folder", "no Hugging Face tokenizer in this folder"),
    ],
)
def test_an_unusable_model_is_named(
    tmp_path: Path, kind: str, content: bytes | str | None, message: str
) -> None:
    path = tmp_path / "model"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(UserError, match=message) as caught:
        build_tokenizer(kind, path)
    assert "\n" not in str(caught.value)


def test_errors_of_training_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocab_size 100"):
        train_sentencepiece(TEXTS, tmp_path / "a", 100)
    with pytest.raises(UserError, match="not set"):
        build_tokenizer("SentencePieceTokenizer", "")
