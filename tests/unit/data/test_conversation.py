"""Conversations by the templates of published models, token for token as transformers has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from megatron_longrl.data.conversation import Conversation
from megatron_longrl.data.prompts import PromptBuilder
from megatron_longrl.data.rows import Row, RowError
from megatron_longrl.data.templates import CHAT_TEMPLATES
from megatron_longrl.data.tokenizer import Tokenizer, build_tokenizer
from megatron_longrl.errors import UserError
from megatron_longrl.models.qwen_vl.layout import QwenLayout
from tests.real_tokenizers import KINDS, QWEN25_VL, write

QUESTIONS = {
    "plain": "Where is the ball?\nA. left\nB. right",
    "spaces": "  Where is it? ",
    "newline first": "\nWhere is it?\n",
    "symbols": "What does <|im_end|> or <|eot_id|> or </s> mean?",
    "placeholders": "Is <|video_pad|> or <|vision_start|><|image_pad|><|vision_end|> a token?",
    "Jinja": "What is {{ 7 * 7 }} in {% raw %}?",
    "private use": "What is \ue000 or \ue0000\ue000?",
    "other scripts": "球在哪里？ e\u0301 \U0001f600",
}


class Marked:
    """A layout whose media are one text each."""

    placeholders = QwenLayout.placeholders


def row_of(problem: str, images: int = 0, videos: int = 0) -> Row:
    return Row(
        problem_id="7",
        problem=problem,
        answer="B",
        reasoning="It starts left.",
        videos=tuple(Path(f"{k}.mp4") for k in range(videos)),
        problem_type="general",
        data_type="video" if videos else "text",
        source="rows.jsonl:7",
        images=tuple(Path(f"{k}.png") for k in range(images)),
    )


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = write(tmp_path_factory.mktemp("tokenizer"), kind)
        return made[kind]

    return make


def tokenizer_of(folder: Path) -> Tokenizer:
    return build_tokenizer("HuggingFaceTokenizer", folder)


def text_of(pieces: list[str | int]) -> str:
    """With media as Qwen-VL's templates write them."""
    symbol = "<|vision_start|><|{}_pad|><|vision_end|>"
    return "".join(p if isinstance(p, str) else symbol.format("video") for p in pieces)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_text_rows_are_what_apply_chat_template_makes(
    folder_of: Callable[..., Path], kind: str, question: str
) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(folder_of(kind))
    messages = [{"role": "user", "content": QUESTIONS[question]}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    builder = PromptBuilder(
        tokenizer_of(folder_of(kind)), None, max_tokens=1000, max_frames=None, fps=None
    )
    prompt = builder.build(row_of(QUESTIONS[question]))
    assert prompt.token_ids.tolist() == expected
    assert not prompt.media_mask.any()


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("system", [None, "Answer briefly. <|video_pad|>"], ids=["", "system"])
@pytest.mark.parametrize("kind", ["qwen2.5-vl", "qwen3-vl"])
def test_media_rows_are_what_the_processor_would_expand(
    folder_of: Callable[..., Path], kind: str, system: str | None, question: str
) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(folder_of(kind))
    text = QUESTIONS[question]
    content = [{"type": "video"}, {"type": "video"}, {"type": "text", "text": text}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    made = Conversation(tokenizer_of(folder_of(kind)), Marked(), system=system)  # type: ignore[arg-type]
    pieces = made.pieces(row_of(text, videos=2))
    assert text_of(pieces) == expected
    assert [piece for piece in pieces if isinstance(piece, int)] == [0, 1]


@pytest.mark.parametrize("kind", ["qwen2.5", "qwen2.5-vl", "llama3", "mistral"])
def test_media_stand_where_the_question_has_them(folder_of: Callable[..., Path], kind: str) -> None:
    """Also in templates that know no media, as of language models below a VILA."""
    layout: Any = Marked() if "vl" in kind else type("", (), {"placeholders": {}})()
    made = Conversation(tokenizer_of(folder_of(kind)), layout)
    pieces = made.pieces(row_of("a <video>b<image>c <video> d", images=1, videos=2))
    assert [piece for piece in pieces if isinstance(piece, int)] == [1, 0, 2]
    before, first, second, behind = (piece for piece in pieces if isinstance(piece, str))
    assert (before[-2:], first, second, behind[:2]) == ("a ", "b", "c ", " d")


def test_media_of_a_kind_without_placeholders_come_first(folder_of: Callable[..., Path]) -> None:
    made = Conversation(tokenizer_of(folder_of("qwen3-vl")), Marked())  # type: ignore[arg-type]
    pieces = made.pieces(row_of("a<video>b", images=2, videos=1))
    assert pieces[1:3] == [0, 1] and pieces[3:5] == ["a", 2]


@pytest.mark.parametrize(
    ("kind", "changes", "text", "end"),
    [
        ("qwen2.5", {}, "<|im_end|>", []),
        ("llama3", {}, "<|eot_id|>", []),
        ("mistral", {}, "</s>", []),
        ("qwen2.5", {"eos": "<|endoftext|>", "ends": ["<|endoftext|>"]}, "", ["<|endoftext|>"]),
        ("qwen2.5", {"eos": "<|endoftext|>", "ends": None}, "", ["<|endoftext|>"]),
        ("qwen2.5", {"eos": "<|endoftext|>", "ends": ["<|im_end|>"]}, "<|im_end|>", []),
        ("llama3", {"template": None, "ends": ["<|eom_id|>"]}, "", ["<|eom_id|>"]),
    ],
    ids=["Qwen", "Llama", "Mistral", "base", "no settings", "settings say", "no template"],
)
def test_a_demonstration_ends_with_what_the_model_stops_at(
    tmp_path: Path, kind: str, changes: dict[str, Any], text: str, end: list[str]
) -> None:
    tokenizer = tokenizer_of(write(tmp_path, kind, **changes))
    name = "plain" if "template" in changes else None
    made = Conversation(tokenizer, None, chat_template=name)
    target, ids = made.target("It is left.", "A")
    assert target == f"<think>It is left.</think><answer>A</answer>{text}"
    assert ids == [tokenizer.id_of(symbol) for symbol in end]
    assert ([*tokenizer.encode(target), *ids])[-1] in tokenizer.end_ids


def test_a_prompt_that_opens_the_thought_is_gone_on_with(folder_of: Callable[..., Path]) -> None:
    tokenizer = tokenizer_of(folder_of("qwen3-thinking"))
    builder = PromptBuilder(tokenizer, None, max_tokens=500, max_frames=None, fps=None)
    prompt = builder.build(row_of("Where?"))
    assert prompt.opening == "<think>\n"
    whole = tokenizer.decode([*prompt.token_ids.tolist(), *builder.response_ids(prompt.row)])
    assert whole.endswith("assistant\n<think>\nIt starts left.</think><answer>B</answer><|im_end|>")


def test_a_thought_that_may_not_be_is_closed(folder_of: Callable[..., Path]) -> None:
    """As Qwen3's templates do with enable_thinking=False."""
    tokenizer = tokenizer_of(folder_of("qwen3-thinking"))
    made = Conversation(tokenizer, None, thinks=False)
    assert made.opening == ""
    (text,) = made.pieces(row_of("Where?"))
    assert str(text).endswith("assistant\n<think>\n\n</think>\n\n")
    other = Conversation(tokenizer_of(folder_of("qwen2.5")), None, thinks=False)
    assert "think" not in str(other.pieces(row_of("Where?")))


@pytest.mark.parametrize("kind", ["qwen2.5", "qwen2.5-vl", "llama3"])
def test_a_system_prompt_is_a_turn(folder_of: Callable[..., Path], kind: str) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(folder_of(kind))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    made = Conversation(tokenizer_of(folder_of(kind)), None, system="Be brief.")
    assert "".join(map(str, made.pieces(row_of("Where?")))) == expected


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        (
            "mistral",
            {"system": "x"},
            "Only user and assistant roles are supported!; leave out --sys",
        ),
        (
            "llama3",
            {"chat_template": "qwen2"},
            "chat-template qwen2 writes <|im_start|>, <|im_end|>,",
        ),
        (
            "qwen2",
            {"chat_template": "llama3"},
            "writes <|start_header_id|>, <|end_header_id|>, <|eo",
        ),
        (
            "mistral",
            {"chat_template": "vila"},
            "<|im_start|>, <|im_end|>, which the tokenizer does",
        ),
        (
            "qwen2",
            {"chat_template": "qwen3"},
            "--chat-template qwen3 is not known: give a file, or",
        ),
        (
            "qwen2",
            {"prompt_template": "cot"},
            "--prompt-template cot is not known: give a file, or",
        ),
    ],
)
def test_what_does_not_suit_the_tokenizer_is_refused(
    folder_of: Callable[..., Path], kind: str, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        Conversation(tokenizer_of(folder_of(kind)), None, **flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_template_the_default_must_suit_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(write(tmp_path, "llama3", template=None))
    with pytest.raises(
        UserError, match=r"\(the tokenizer has no template of its own\) writes <\|im"
    ):
        Conversation(tokenizer, None)
    Conversation(tokenizer, None, chat_template="llama3")


def test_an_own_template_may_write_symbols_as_text_if_it_ends_its_turns(tmp_path: Path) -> None:
    zephyr = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    Conversation(tokenizer_of(write(tmp_path / "a", "llama3", template=zephyr)), None)
    endless = zephyr.replace("{{ eos_token }}", "<|im_end|>")
    with pytest.raises(UserError, match=r"own chat template writes <\|user\|>, <\|im_end\|>"):
        Conversation(tokenizer_of(write(tmp_path / "b", "llama3", template=endless)), None)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "Expected"),
        ("{{ raise_exception('no') }}", ": no; take another"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("Hello", "leaves out the question"),
        ("{{ messages | length }}", "leaves out the question"),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "has no place for",
        ),
        ("{{ messages.__class__.__mro__ }}{{ messages[0].content }}", "unsafe"),
    ],
)
def test_broken_template_files(
    folder_of: Callable[..., Path], tmp_path: Path, template: str, message: str
) -> None:
    (tmp_path / "t.jinja").write_text(template)
    with pytest.raises(UserError) as caught:
        Conversation(
            tokenizer_of(folder_of("qwen2")),
            None,
            chat_template=str(tmp_path / "t.jinja"),
            system="s" if "place" in message else None,
        )
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_file_is_used(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}>")
    made = Conversation(
        tokenizer_of(folder_of("qwen2")), None, chat_template=str(tmp_path / "t.jinja")
    )
    assert made.pieces(row_of("Q")) == ["[Q]>"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Think. {question} Answer.", "Think. Q{}? Answer."),
        ("{{ question }}\n\nThink.\n", "Q{}?\n\nThink.\n"),
        ("{{ content | trim }} Think.", "Q{}? Think."),
        ("{a} {question} {b}", "{a} Q{}? {b}"),
        ("{question}{# no Jinja #}", "Q{}?{# no Jinja #}"),
    ],
)
def test_prompt_templates_of_files(
    folder_of: Callable[..., Path], tmp_path: Path, template: str, expected: str
) -> None:
    (tmp_path / "p.txt").write_text(template)
    tokenizer, name = tokenizer_of(folder_of("qwen2")), str(tmp_path / "p.txt")
    made = Conversation(tokenizer, None, prompt_template=name, chat_template="plain")
    assert made.pieces(row_of("Q{}?")) == [f"{expected}\n"]


@pytest.mark.parametrize("template", ["Think.", "{question} {question}", "{{ q }}", "{% if %}", ""])
def test_prompt_templates_without_a_question(
    folder_of: Callable[..., Path], tmp_path: Path, template: str
) -> None:
    (tmp_path / "p.txt").write_text(template)
    with pytest.raises(UserError, match=r"^--prompt-template .*p\.txt"):
        Conversation(
            tokenizer_of(folder_of("qwen2")), None, prompt_template=str(tmp_path / "p.txt")
        )


def test_the_built_in_prompt_template_asks_for_the_tags(folder_of: Callable[..., Path]) -> None:
    made = Conversation(
        tokenizer_of(folder_of("qwen3-vl")),
        Marked(),  # type: ignore[arg-type]
        prompt_template="think-answer",
    )
    pieces = made.pieces(row_of("Where?", videos=1))
    assert pieces[1] == 0 and str(pieces[2]).startswith("Where?\n\nThink")
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert tag in str(pieces[2])


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_built_in_templates(tmp_path: Path, name: str) -> None:
    system = {"qwen2_system": "You are a helpful assistant.", "vila": "You are a helpful assistant"}
    turn = f"<|im_start|>system\n{system[name]}<|im_end|>\n" if name in system else ""
    expected = {
        "plain": "QUESTION\n",
        "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQUESTION<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    }.get(name, f"{turn}<|im_start|>user\nQUESTION<|im_end|>\n<|im_start|>assistant\n")
    tokenizer = tokenizer_of(write(tmp_path, "llama3" if name == "llama3" else "qwen2"))
    made = Conversation(tokenizer, None, chat_template=name)
    assert made.pieces(row_of("QUESTION")) == [expected]


def test_a_template_that_loses_media_is_told(
    folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    only_first = QWEN25_VL.replace("in message.content %}", "in message.content[:2] %}")
    tokenizer = tokenizer_of(write(tmp_path, "qwen2.5-vl", template=only_first))
    made = Conversation(tokenizer, Marked())  # type: ignore[arg-type]
    with pytest.raises(RowError, match=r"rows\.jsonl:7: .* leaves out 1 of the row's media"):
        made.pieces(row_of("Where?", videos=3))


HISTORY = (("user", "Compare <video> with <image>."), ("assistant", "They <|im_end|> differ."))


@pytest.mark.parametrize("kind", ["qwen2.5-vl", "qwen3-vl"])
def test_a_conversation_of_several_turns(folder_of: Callable[..., Path], kind: str) -> None:
    """With the row's own system prompt, as the processor's template writes it."""
    theirs: Any = AutoTokenizer.from_pretrained(folder_of(kind))
    row = dataclasses.replace(
        row_of("Which is older, or <video>?", images=1, videos=2),
        system="Be brief.",
        history=HISTORY,
    )
    video = {"type": "video"}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            _part("Compare "), video, _part(" with "), {"type": "image"}, _part(".")
        ]},
        {"role": "assistant", "content": "They <|im_end|> differ."},
        {"role": "user", "content": [_part("Which is older, or "), video, _part("?")]},
    ]  # fmt: skip
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    conversation = Conversation(tokenizer_of(folder_of(kind)), Marked())  # type: ignore[arg-type]
    pieces = conversation.pieces(row)
    assert [piece for piece in pieces if isinstance(piece, int)] == [1, 0, 2]
    symbol = {0: "image", 1: "video", 2: "video"}
    found = "".join(
        piece if isinstance(piece, str) else
        f"<|vision_start|><|{symbol[piece]}_pad|><|vision_end|>"
        for piece in pieces
    )  # fmt: skip
    assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_several_turns(folder_of: Callable[..., Path], kind: str) -> None:
    theirs: Any = AutoTokenizer.from_pretrained(folder_of(kind))
    turns = [("user", "One?"), ("assistant", "Two."), ("user", "Three?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    conversation = Conversation(tokenizer_of(folder_of(kind)), None)
    row = dataclasses.replace(row_of("Three?"), history=tuple(turns[:2]), response="Four.")
    assert "".join(map(str, conversation.pieces(row))) == expected
    assert conversation.said("Four.")[0].startswith("Four.")


def test_a_template_without_a_place_for_the_rows_system_turn(
    folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
    tokenizer = tokenizer_of(folder_of("qwen2.5-vl"))
    conversation = Conversation(tokenizer, None, chat_template=str(path))
    row = dataclasses.replace(row_of("One?"), system="Be brief.")
    with pytest.raises(RowError, match="no place for the row's system turn"):
        conversation.pieces(row)


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
