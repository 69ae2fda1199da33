"""Tokenizers of published models' kinds, in small: their special tokens, what ends a response, and
the forms of their conversations; words are bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHATML_TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' or 'image' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. "
    "You are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' or message.role == 'assistant' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN2 = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN25_VL = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + CHATML_TURNS
)
QWEN25_OMNI = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif content['type'] == 'audio' or 'audio' in content %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3_THINKING = CHATML_TURNS.replace("assistant\\n", "assistant\\n<think>\\n")
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
NVILA = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{% for message in messages if message['content'] is not none %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VILA_TOKENS = ("<vila/sentinel>", "<image>", "<vila/video>")
OMNI_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
"""Further settings of ``generate`` that published models have."""


@dataclass(frozen=True)
class Kind:
    """What tells one from another."""

    symbols: Sequence[str]
    template: str
    eos: str
    ends: Sequence[str]
    """Of generation_config.json."""
    bos: str | None = None
    """Opens every text that is encoded with special tokens."""
    named: Mapping[str, str] = field(default_factory=dict)
    """Attributes of the tokenizer by which its processor asks for symbols."""


KINDS = {
    "qwen2": Kind(QWEN_TOKENS, QWEN2, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
    "qwen2.5": Kind(QWEN_TOKENS, QWEN25, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")),
    "qwen2.5-vl": Kind(
        (*QWEN_TOKENS, *VISION_TOKENS), QWEN25_VL, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")
    ),
    "qwen2.5-omni": Kind(
        (*QWEN_TOKENS, *OMNI_TOKENS.values()),
        QWEN25_OMNI,
        "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"),
        named=OMNI_TOKENS,
    ),
    "qwen3-vl": Kind(
        (*QWEN_TOKENS, *VISION_TOKENS), CHATML_TURNS, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")
    ),
    "qwen3-thinking": Kind(
        (*QWEN_TOKENS, *VISION_TOKENS), QWEN3_THINKING, "<|im_end|>", ("<|im_end|>",)
    ),
    "nvila": Kind(
        (*QWEN_TOKENS, *VILA_TOKENS), NVILA, "<|im_end|>", ("<|im_end|>", "<|endoftext|>")
    ),
    "llama3": Kind(
        (
            *("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>"),
            *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ),
        LLAMA3,
        "<|eot_id|>",
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
    ),
    "mistral": Kind(("<s>", "</s>", "[INST]", "[/INST]"), MISTRAL, "</s>", ("</s>",), "<s>"),
}


def write(folder: Path, kind: str, **changes: Any) -> Path:
    """A folder as transformers saves a tokenizer, with ``generation_config.json``.

    Args:
        changes: of :class:`Kind`; ``template=None`` leaves the template out, ``ends=None`` the
            generation settings.
    """
    given = {**vars(KINDS[kind]), **changes}
    build = _qwen2 if "<|im_start|>" in given["symbols"] else _byte_level
    tokenizer = build(given["symbols"], given["bos"], given["named"])
    tokenizer.eos_token, tokenizer.pad_token = given["eos"], given["symbols"][0]
    if given["template"] is not None:
        tokenizer.chat_template = given["template"]
    tokenizer.save_pretrained(folder)
    if given["ends"] is not None:
        ids = [tokenizer.convert_tokens_to_ids(symbol) for symbol in given["ends"]]
        settings = {"eos_token_id": ids, "pad_token_id": tokenizer.pad_token_id, **SAMPLING}
        if given["bos"] is not None:
            settings["bos_token_id"] = tokenizer.bos_token_id
        (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def _words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Bytes, and one pair: newlines that meet become one token, as theirs do, so that texts must
    not be encoded in pieces."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    newline = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("\n")[0][0]
    return {**words, newline * 2: len(words)}, [(newline, newline)]


def _qwen2(symbols: Sequence[str], bos: str | None, named: Mapping[str, str]) -> Any:
    """Of the class that Qwen's folders name."""
    from transformers import Qwen2TokenizerFast

    words, pairs = _words()
    # It adds its own end of text by itself; ids are those of the order that is given.
    words |= {symbol: len(words) + number for number, symbol in enumerate(symbols)}
    tokenizer = Qwen2TokenizerFast(
        vocab=words, merges=pairs, bos_token=bos, extra_special_tokens=dict(named)
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(symbols)})
    return tokenizer


def _byte_level(symbols: Sequence[str], bos: str | None, named: Mapping[str, str]) -> Any:
    """As Llama's and Mistral's folders have it, without a class of its own."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    words, pairs = _words()
    fast = Tokenizer(models.BPE(words, pairs))
    lines = pre_tokenizers.Split(Regex(r"\s*[\r\n]+|[^\r\n]+"), "isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [lines, ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(list(symbols))
    if bos is not None:
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, fast.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=bos)
