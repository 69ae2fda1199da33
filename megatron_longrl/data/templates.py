"""Templates that are written here: conversations by --chat-template, questions by
--prompt-template. All are in Jinja, as Hugging Face's chat templates are."""

from __future__ import annotations

from pathlib import Path

from megatron_longrl.errors import UserError
from megatron_longrl.regular_file import read_regular


def _chatml(default_system: str | None) -> str:
    """Qwen2's form. Without a system turn in the conversation ``default_system`` is one."""
    turn = (
        "<|im_start|>{{ message['role'] }}{{ '\\n' }}{{ message['content'] }}<|im_end|>{{ '\\n' }}"
    )
    system = ""
    if default_system is not None:
        system = (
            "{% if messages[0]['role'] != 'system' %}<|im_start|>system{{ '\\n' }}"
            f"{default_system}<|im_end|>{{{{ '\\n' }}}}{{% endif %}}"
        )
    opening = "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
    return f"{system}{{% for message in messages %}}{turn}{{% endfor %}}{opening}"


_LLAMA3_HEADER = "<|start_header_id|>{{ %s }}<|end_header_id|>{{ '\\n\\n' }}"

CHAT_TEMPLATES = {
    "qwen2": _chatml(None),
    "qwen2_system": _chatml("You are a helpful assistant."),
    # As VILA and LongVILA were trained: Qwen2's form, and a system turn without a full stop.
    "vila": _chatml("You are a helpful assistant"),
    "plain": "{% for message in messages %}{{ message['content'] }}{{ '\\n' }}{% endfor %}",
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        + _LLAMA3_HEADER % "message['role']"
        + "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
        + "{% if add_generation_prompt %}"
        + _LLAMA3_HEADER % "'assistant'"
        + "{% endif %}"
    ),
}
"""Chat templates by the name that --chat-template takes."""

DEFAULT_CHAT_TEMPLATE = "qwen2"
"""Chat template for a tokenizer that has none."""

PROMPT_TEMPLATES = {
    "think-answer": (
        "{{ question }}{{ '\\n\\n' }}"
        "Think step by step before you answer. Write your reasoning between <think> and </think>, "
        "and behind it nothing but the final answer between <answer> and </answer>."
    ),
}
"""Prompt templates by the name that --prompt-template takes."""

_QUESTION = "{question}"

_LARGEST = 1 << 20
"""The most bytes of a file with a template."""


def find_chat_template(name: str) -> str:
    """The template of a name or a file.

    Raises:
        UserError: there is none.
    """
    return _find(name, CHAT_TEMPLATES, "--chat-template")


def find_prompt_template(name: str) -> str:
    """The template of a name or a file. ``{question}`` stands for the question in a file that is no
    Jinja.

    Raises:
        UserError: there is none, or it has no place for the question.
    """
    template = _find(name, PROMPT_TEMPLATES, "--prompt-template")
    if "{{" in template or "{%" in template:
        return template
    before, place, after = template.partition(_QUESTION)
    if not place or _QUESTION in after:
        raise UserError(
            f"--prompt-template {name}: the file must have one place for the question, "
            "{{ question }} in Jinja or {question} in plain text"
        )
    return "{% raw %}" + before + "{% endraw %}{{ question }}{% raw %}" + after + "{% endraw %}"


def _find(name: str, named: dict[str, str], flag: str) -> str:
    if name in named:
        return named[name]
    path = Path(name)
    try:
        if path.is_file():
            return read_regular(path, _LARGEST).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {name}: the file cannot be read ({error})") from None
    raise UserError(f"{flag} {name} is not known: give a file, or one of {', '.join(named)}")
