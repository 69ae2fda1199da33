"""Conversations: a chat template applied to a row's question and media.

The template is rendered once for each row, as ``apply_chat_template`` of transformers does. Marks
that no text of the row holds give the places of media in the result; text that a user or a policy
may have written is never searched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatron_longrl.data.placeholders import place_media
from megatron_longrl.data.rows import Row, RowError
from megatron_longrl.data.template_process import QUESTION, TemplateFailed, template_process
from megatron_longrl.data.templates import (
    DEFAULT_CHAT_TEMPLATE,
    find_chat_template,
    find_prompt_template,
)
from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    from megatron_longrl.media.layout import MediaLayout

_WORD, _REPLY, _SYSTEM = "QUESTION", "REPLY", "INSTRUCTION"
"""Texts with which a template is tried out."""
_SYMBOL = re.compile(r"<\|[^\s|<>]+\|>|<(?:start|end)_of_\w+>")
_OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
_MARK = "\ue000"  # for private use: no text holds it but by intent, which is looked for


class Conversation:
    """Renders questions.

    Args:
        layout: tells what a template writes for media; None for a family that reads text only.
        chat_template: ``--chat-template``; None takes the tokenizer's own, and ``qwen2`` where it
            has none.
        system: ``--system-prompt``.
        prompt_template: ``--prompt-template``.
        thinks: whether a thought that the template opens stays open; else it is closed at once.

    Raises:
        UserError: a template is not known or broken, has no place for the system prompt, or writes
            symbols that the tokenizer does not have.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        layout: MediaLayout | None,
        *,
        chat_template: str | None = None,
        system: str | None = None,
        prompt_template: str | None = None,
        thinks: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        own = tokenizer.chat_template if chat_template is None else None
        self._name = "the tokenizer's own chat template"
        if own is None:
            self._name = f"--chat-template {chat_template or DEFAULT_CHAT_TEMPLATE}"
            if chat_template is None:
                self._name += " (the tokenizer has no template of its own)"
        self._template = own or find_chat_template(chat_template or DEFAULT_CHAT_TEMPLATE)
        self._wrap = None if prompt_template is None else find_prompt_template(prompt_template)
        self._prompt_name = prompt_template
        self._system = system
        self._symbols = layout.placeholders if layout is not None else {}
        self._pattern = re.compile(
            "|".join(f"(?P<{kind}>{p})" for kind, p in self._symbols.items())
        )
        self._takes_texts, self._takes_parts = self._accepts(_WORD), self._accepts([_text(_WORD)])
        if not (self._takes_texts or self._takes_parts):
            self._try([self._message("user", _WORD)])
            raise UserError(f"{self._name} leaves out the question: take another --chat-template")
        self._marks_media = bool(self._symbols) and self._takes_parts and self._writes_media()
        instruction = None if system is None else _SYSTEM
        probe = self._try([*self._system_turn(instruction), self._message("user", _WORD)])
        if system is not None and _SYSTEM not in probe:
            raise UserError(
                f"{self._name} has no place for --system-prompt: put it into a --prompt-template"
            )
        opened = _OPEN_THOUGHT.search(probe)
        self._shut = "\n</think>\n\n" if opened and not thinks else ""
        self.opening = opened[0] if opened and thinks else ""
        """The tag with which the prompt opens the thought of the response, in some templates."""
        self.closing = self._closing()
        """End of a demonstration: text up to an end token, or nothing but that token."""
        self._check_symbols(probe, is_own=own is not None)
        self.wrapped("?")

    def pieces(self, row: Row) -> list[str | int]:
        """A row's prompt: texts, and the row's media by their numbers.

        Raises:
            RowError: placeholders and media do not agree, or the template refuses the row.
        """
        modalities = [medium.modality for medium in row.media]
        try:
            texts = [*(text for _, text in row.history), self.wrapped(row.problem)]
            system = self._system if row.system is None else row.system
            mark = _free_mark([*texts, system or ""])
            between = mark + mark
            turns = _split(place_media(between.join(texts), modalities), between)
            roles = [*(role for role, _ in row.history), "user"]
            found: list[str | int]
            if self._marks_media and modalities:
                found = self._by_symbols(roles, turns, system, modalities, mark)
                self._check_system(row, "".join(part for part in found if isinstance(part, str)))
                return self._closed(found)
            said = [
                "".join(p if isinstance(p, str) else f"{mark}{p}{mark}" for p in parts)
                for parts in turns
            ]
            messages = [self._message(role, text) for role, text in zip(roles, said, strict=True)]
            rendered = self._render([*self._system_turn(system), *messages], asks=True)
            self._check_system(row, rendered)
            cut = re.split(f"{mark}(\\d+){mark}", rendered)
            found = [int(p) if place % 2 else p for place, p in enumerate(cut)]
            return self._closed(self._checked(found, len(modalities)))
        except ValueError as error:
            raise RowError(row.source, str(error)) from None

    def _closed(self, pieces: list[str | int]) -> list[str | int]:
        """The prompt with its opened thought closed, where responses may not reason. The text is
        one, so that it is split into tokens as one."""
        return [*pieces[:-1], f"{pieces[-1]}{self._shut}"] if self._shut else pieces

    def target(self, reasoning: str, answer: str) -> tuple[str, list[int]]:
        """The demonstration, and the end tokens that follow its text."""
        thought = f"<think>{reasoning}</think>" if reasoning else ""
        if self.opening:  # the prompt has written the tag
            thought = f"{reasoning}</think>"
        return self.ended(f"{thought}<answer>{answer}</answer>")

    def said(self, response: str) -> tuple[str, list[int]]:
        """An assistant's turn in the data, and the end tokens that follow its text."""
        return self.ended(response.removeprefix(self.opening.strip()) if self.opening else response)

    def ended(self, text: str) -> tuple[str, list[int]]:
        """The text with what closes the turn, and the end tokens that follow it."""
        if self.closing is None:
            return text, [self._tokenizer.eos_id]
        return text + self.closing, []

    def wrapped(self, question: str) -> str:
        """The question in ``--prompt-template``."""
        if self._wrap is None:
            return question
        # `content` and `problem` are names that templates of EasyR1 and of rows have for it.
        values = dict.fromkeys(("question", "content", "problem"), question)
        try:
            text = template_process.render(QUESTION, self._wrap, values)
        except TemplateFailed as error:
            raise UserError(f"--prompt-template {self._prompt_name}: {_line(error)}") from None
        if question.strip() not in text:
            raise UserError(
                f"--prompt-template {self._prompt_name} leaves out the question: write "
                "{{ question }} in its place"
            )
        return text

    # ---- Media ----

    def _check_system(self, row: Row, rendered: str) -> None:
        if row.system is not None and row.system.strip() not in rendered:
            raise ValueError(f"{self._name} has no place for the row's system turn; leave it out")

    def _by_symbols(
        self,
        roles: Sequence[str],
        turns: Sequence[Sequence[str | int]],
        system: str | None,
        modalities: Sequence[str],
        mark: str,
    ) -> list[str | int]:
        """Media where the template writes its family's symbols for them; the same in the row's own
        text are hidden from the search."""
        messages = self._system_turn(None if system is None else self._hide(system, mark))
        for role, parts in zip(roles, turns, strict=True):
            if role == "assistant":
                said = "".join(part for part in parts if isinstance(part, str))
                messages.append(self._message(role, self._hide(said, mark)))
                continue
            content = [
                _text(self._hide(part, mark))
                if isinstance(part, str)
                else {"type": modalities[part]}
                for part in parts
            ]
            messages.append({"role": role, "content": content})
        rendered = self._render(messages, asks=True)
        order = [part for parts in turns for part in parts if isinstance(part, int)]
        result: list[str | int] = []
        at = 0
        for match in self._pattern.finditer(rendered):
            number = order.pop(0) if order else -1
            if number < 0 or match.lastgroup != modalities[number]:
                raise ValueError(f"{self._name} writes other media than the row has")
            result += [self._show(rendered[at : match.start()], mark), number]
            at = match.end()
        if order:
            raise ValueError(f"{self._name} leaves out {len(order)} of the row's media")
        return [part for part in [*result, self._show(rendered[at:], mark)] if part != ""]

    def _hide(self, text: str, mark: str) -> str:
        """Symbols of media without the character with which they begin."""
        return self._pattern.sub(lambda match: match[0].replace("<", mark), text)

    def _show(self, text: str, mark: str) -> str:
        return text.replace(mark, "<")

    def _writes_media(self) -> bool:
        """Whether the template supports parts of a content that are no text."""
        for kind in self._symbols:
            content = [{"type": kind}, _text(_WORD)]
            try:
                rendered = self._render([{"role": "user", "content": content}], asks=True)
            except ValueError:
                return False
            if [match.lastgroup for match in self._pattern.finditer(rendered)] != [kind]:
                return False
        return True

    def _checked(self, parts: list[str | int], count: int) -> list[str | int]:
        if sorted(part for part in parts if isinstance(part, int)) != list(range(count)):
            raise ValueError(f"{self._name} leaves out, or repeats, some of the row's media")
        return [part for part in parts if part != ""]

    # ---- The template ----

    def _accepts(self, content: Any) -> bool:
        """Whether the template writes a content itself, and not its Python representation."""
        try:
            rendered = self._render([{"role": "user", "content": content}], asks=True)
        except ValueError:
            return False
        return _WORD in rendered and "'type'" not in rendered

    def _message(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": text if self._takes_texts else [_text(text)]}

    def _system_turn(self, text: str | None) -> list[dict[str, Any]]:
        return [] if text is None else [self._message("system", text)]

    def _render(self, messages: Sequence[dict[str, Any]], *, asks: bool) -> str:
        """ValueError: whatever the template raises."""
        try:
            return self._tokenizer.render(messages, self._template, asks=asks)
        except Exception as error:  # A template is a program of somebody else.
            raise ValueError(f"{self._name}: {_line(error)}") from None

    def _try(self, messages: Sequence[dict[str, Any]], *, asks: bool = True) -> str:
        try:
            return self._render(messages, asks=asks)
        except ValueError as error:
            remedy = "take another --chat-template"
            if self._system is not None:
                remedy = "leave out --system-prompt, or " + remedy
            raise UserError(f"{error}; {remedy}") from None

    def _closing(self) -> str | None:
        """Return the text that the template writes behind an assistant's turn, up to the first end
        token; None where it writes none."""
        try:
            rendered = self._render(
                [self._message("user", _WORD), self._message("assistant", _REPLY)], asks=False
            )
        except ValueError:
            return None
        text = rendered.rpartition(_REPLY)[2]
        ids = self._tokenizer.encode(text)
        place = next((k for k, i in enumerate(ids) if i in self._tokenizer.end_ids), None)
        if place is None:
            return None
        symbol = self._tokenizer.decode([ids[place]])
        before, found, _ = text.partition(symbol)
        return before + found if found else None

    def _check_symbols(self, probe: str, *, is_own: bool) -> None:
        """Refuse a template whose symbols would be read letter by letter.

        A tokenizer's own may have some that are no tokens, if the turn still ends with one.
        """
        if is_own and self.closing is not None:
            return
        symbols = dict.fromkeys(_SYMBOL.findall(probe))
        lacking = [symbol for symbol in symbols if len(self._tokenizer.encode(symbol)) != 1]
        if lacking:
            raise UserError(
                f"{self._name} writes {', '.join(lacking)}, which the tokenizer does not have as "
                "one token: give the --chat-template of this model, a file or a name; plain has "
                "no symbols"
            )


def _split(parts: Sequence[str | int], between: str) -> list[list[str | int]]:
    """Cut the parts of several turns, of which each is not empty, at the text between them."""
    turns: list[list[str | int]] = [[]]
    for part in parts:
        if isinstance(part, int):
            turns[-1].append(part)
            continue
        first, *others = part.split(between)
        turns[-1].append(first)
        turns += [[other] for other in others]
    return [[part for part in turn if part != ""] for turn in turns]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _free_mark(texts: Sequence[str]) -> str:
    """A text that none of these holds."""
    mark = _MARK
    while any(mark in text for text in texts):
        mark += _MARK
    return mark


def _line(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())
