"""Tokenizers: nothing is lost between text and ids, special tokens are single ids."""

from __future__ import annotations

import json
import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megatron_longrl.data.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    build_tokenizer,
    ending,
    ids_without_token,
    train_sentencepiece,
)
from megatron_longrl.errors import UserError
from tests.real_tokenizers import write

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


FIRST = 257
"""Id of the first special token of the tokenizers that tests/real_tokenizers.py writes."""


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": [FIRST + 1, FIRST]}}, "BA"),
        ({"generation_config.json": {"eos_token_id": FIRST}}, "A"),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": [FIRST, FIRST + 2]}}, "AC"),
        ({"config.json": {"text_config": {"eos_token_id": FIRST + 1}}}, "B"),
        ({"generation_config.json": {"eos_token_id": [99999, FIRST + 1, -1]}}, "B"),
        ({"generation_config.json": {"eos_token_id": None}}, "C"),
        ({"../hf_files/generation_config.json": {"eos_token_id": [FIRST]}}, "A"),
        ({"../hf_files/llm/generation_config.json": {"eos_token_id": [FIRST + 1]}}, "B"),
        ({}, "C"),
    ],
    ids=[
        *("list", "one", "config", "nested", "no such token", "null", "of a run", "of a VILA run"),
        "none",
    ],
)
def test_a_response_ends_where_generate_ends(
    tmp_path: Path, files: dict[str, object], expected: str
) -> None:
    folder = write(tmp_path / "run" / "tokenizer", "llama3", **LETTERS)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    tokenizer = build_tokenizer("HuggingFaceTokenizer", folder)
    assert [tokenizer.decode([i]) for i in tokenizer.end_ids] == [f"<{one}>" for one in expected]
    preferred = "C" if "C" in expected else expected[0]
    assert tokenizer.decode([tokenizer.eos_id]) == f"<{preferred}>"


LETTERS: dict[str, Any] = {
    "symbols": ("<A>", "<B>", "<C>"),
    "eos": "<C>",
    "bos": None,
    "ends": None,
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"eos_token_id": "</s>"}', "eos_token_id must be the id of a token, or a list of ids"),
        ('{"eos_token_id": [true]}', "eos_token_id must be"),
        ('{"eos_token_id": [[1]]}', "eos_token_id must be"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_settings_that_tell_no_end(tmp_path: Path, content: str, message: str) -> None:
    folder = write(tmp_path, "llama3", **LETTERS)
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        build_tokenizer("HuggingFaceTokenizer", folder)
    assert "generation_config.json" in str(caught.value)


def test_a_folder_without_an_end_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama3", **{**LETTERS, "eos": None})
    with pytest.raises(UserError, match="no token ends a response: set eos_token in"):
        build_tokenizer("HuggingFaceTokenizer", folder)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "own"),
        ({"chat_template.json": json.dumps({"chat_template": "processor"})}, "processor"),
        (
            {
                "chat_template.json": json.dumps({"chat_template": "processor"}),
                "chat_template.jinja": "file",
            },
            "file",
        ),
    ],
    ids=["tokenizer_config.json", "chat_template.json", "chat_template.jinja"],
)
def test_where_the_chat_template_is(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    folder = write(tmp_path, "qwen2", template=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "own"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, content in files.items():
        (folder / name).write_text(content)
    assert build_tokenizer("HuggingFaceTokenizer", folder).chat_template == expected


def test_the_default_of_several_templates(tmp_path: Path) -> None:
    templates = {"tool_use": "t", "default": "d"}
    folder = write(tmp_path, "qwen2", template=templates)
    assert build_tokenizer("HuggingFaceTokenizer", folder).chat_template == "d"


@pytest.mark.parametrize("ids", [[10**6], [-1], [2**40, 70], [399, 10_000]])
def test_ids_without_a_token_decode_to_nothing(tokenizer: Tokenizer, ids: list[int]) -> None:
    known = [i for i in ids if 0 <= i < tokenizer.vocab_size]
    assert tokenizer.decode(ids) == tokenizer.decode(known)


def test_which_rows_of_a_model_have_no_token(tmp_path: Path, sentencepiece: Tokenizer) -> None:
    folder = write(tmp_path, "llama3", **LETTERS)
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    last = max(words, key=words.get)
    words[last] = 300  # the rows between are left free
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = build_tokenizer("HuggingFaceTokenizer", folder)
    used = {tokenizer.id_of(symbol) for symbol in (last, *LETTERS["symbols"])} | set(range(256))
    assert tokenizer.vocab_size == max(used) + 1
    found = ids_without_token(tokenizer, 400)
    assert [i for first, behind in found for i in range(first, behind)] == [
        i for i in range(400) if i not in used
    ]
    assert all(one[1] < other[0] for one, other in pairwise(found)), "ranges do not touch"
    size = sentencepiece.vocab_size
    assert ids_without_token(sentencepiece, size) == []
    assert ids_without_token(sentencepiece, size + 9) == [(size, size + 9)]


def test_the_ending_is_all_end_tokens_that_close_a_response(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("HuggingFaceTokenizer", write(tmp_path, "llama3"))
    ends = list(tokenizer.end_ids)
    assert [ending(tokenizer, ids) for ids in ([], [1], [1, *ends], ends, [*ends, 1])] == [
        *(0, 0, 3, 3, 0)
    ]


def test_an_id_beyond_any_vocabulary_allocates_nothing(hugging_face, tmp_path):
    folder = Path(shutil.copytree(hugging_face.origin[1], tmp_path / "tokenizer"))
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["model"]["vocab"]["B"] = 4_000_000_000
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="a token has the id 4000000000, and no vocabulary has"):
        build_tokenizer("HuggingFaceTokenizer", folder)


def test_a_gap_below_a_large_id_costs_nothing(hugging_face, tmp_path):
    folder = Path(shutil.copytree(hugging_face.origin[1], tmp_path / "tokenizer"))
    settings = json.loads((folder / "tokenizer.json").read_text())
    before = settings["model"]["vocab"]["B"]
    settings["model"]["vocab"]["B"] = 16_000_000
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    tokenizer = build_tokenizer("HuggingFaceTokenizer", folder)
    assert len(tokenizer.unused_ids) < 10
    unused = ids_without_token(tokenizer, 16_000_064)
    assert unused[0][0] <= before < unused[0][1] or (before, before + 1) in unused
    assert unused[-2][1] == 16_000_000 and unused[-1] == (16_000_001, 16_000_064)


@pytest.mark.parametrize(
    "name", ["generation_config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_a_file_without_an_end_is_not_read(name, hugging_face, tmp_path):
    folder = Path(shutil.copytree(hugging_face.origin[1], tmp_path / "tokenizer"))
    with (folder / name).open("ab") as file:
        file.truncate(1 << 40)  # a hole, which takes no space
    with pytest.raises(UserError, match=rf"{name} has 1099511627776 bytes, and at most"):
        build_tokenizer("HuggingFaceTokenizer", folder)


def test_a_list_of_ends_without_an_end(hugging_face, tmp_path):
    folder = Path(shutil.copytree(hugging_face.origin[1], tmp_path / "tokenizer"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1] * 2000}))
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id has 2000 ids"):
        build_tokenizer("HuggingFaceTokenizer", folder)
