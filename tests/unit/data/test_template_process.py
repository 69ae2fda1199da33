"""Templates write what transformers writes, and none of them goes on for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_longrl.data.template_process import (
    CHAT,
    QUESTION,
    TemplateFailed,
    TemplateProcess,
    template_process,
)
from megatron_longrl.data.templates import CHAT_TEMPLATES

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind.\n"},
    {"role": "user", "content": "Où est la balle? <&> 日本 🏈 \u2028 {{ 1 }}"},
    {"role": "assistant", "content": "a\n\nb  "},
    {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "video"}]},
]
ODD = {
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{{ m.role }}{% endfor %}",
    "blocks": "  {% if true %}\n  a\n  {% endif %}\nb\n",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "generation": "{% generation %}{{ messages[2].content }}{% endgeneration %}!",
    "nothing": "{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ missing }}",
    "year": "{{ strftime_now('%Y') }}",
}


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES.values(), *ODD.values()])
@pytest.mark.parametrize("asks", [False, True])
def test_a_conversation_is_what_transformers_writes(template: str, asks: bool) -> None:
    messages = MESSAGES[:3] if "| trim" in template or "+" in template else MESSAGES
    theirs, _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=asks, bos_token="<s>"
    )
    conversation = {"messages": messages, "tools": None, "documents": None, "bos_token": "<s>"}
    ours = template_process.render(CHAT, template, {**conversation, "add_generation_prompt": asks})
    assert ours == theirs[0]


def test_a_question_keeps_its_line_breaks() -> None:
    assert template_process.render(QUESTION, "{{ question }}\n\n", {"question": "a\n"}) == "a\n\n\n"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no\nsystem') }}", "no system"),
        ("{% if %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{% for i in range(1000000) %}{% endfor %}", "Range too big"),
    ],
)
def test_what_a_template_raises_is_one_line(template: str, reason: str) -> None:
    with pytest.raises(TemplateFailed, match=reason) as told:
        template_process.render(CHAT, template, {})
    assert "\n" not in str(told.value)


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
ENDLESS = {
    "loops": f"{LOOP}{{% endfor %}}{{% endfor %}}{{% endfor %}}",
    "a recursive macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a product": "{{ 'a' * 10 ** 11 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "doubling": "{% set n = namespace(t='aa') %}{% for i in range(60) %}"
    "{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
    "nesting": "{% set n = namespace(t=[1]) %}{% for i in range(60) %}"
    "{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.t }}",
    "a width": "{{ '%099999999999d' % 1 }}",
    "a filter": "{{ 'a' | center(99999999999) }}",
    "much text": "{% for i in range(90) %}{{ 'a' * 1000000 }}{% endfor %}",
    "a hundred digits": "{{ '%s' % ('1' * 100 | length) * 999999999999 }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_an_end_is_one_line(name: str) -> None:
    process = TemplateProcess(computed_seconds=1.0)
    with pytest.raises(TemplateFailed) as told:
        process.render(CHAT, ENDLESS[name], {})
    assert "\n" not in str(told.value)
    # The next one is rendered as if nothing had been.
    assert process.render(CHAT, "{{ a }}", {"a": 1}) == "1"


def test_it_ends_with_the_process_that_asks() -> None:
    code = """
import os
from megatron_longrl.data.template_process import CHAT, template_process
template_process.render(CHAT, "", {})
print(template_process._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    process = int(done.stdout)
    for _ in range(200):
        if not os.path.exists(f"/proc/{process}"):
            return
        subprocess.run(["sleep", "0.05"], check=True)
    pytest.fail("it outlives the process that asks")
