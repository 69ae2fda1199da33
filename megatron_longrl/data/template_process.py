"""Templates of conversations and questions, which are programs from outside, run in a separate
process.

Jinja's sandbox keeps a template from what it must not reach, but not from going on for ever, or
from taking all memory: loops within loops, ``'a' * 10**10``, a text that is joined to itself sixty
times. A process can be bounded: in the seconds that it computes, in its memory, and in what it
writes. This file is both sides; as a program it needs Jinja alone, and starts in a tenth of a
second.

The environment of chat templates is that of transformers 5
(``transformers.utils.chat_template_utils``), so that both write the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import IO, Any

COMPUTED_SECONDS = 10.0
"""The longest time for which one core may compute a text; the longest conversations take
milliseconds."""
MOST_MEMORY = 1 << 30
"""The most bytes of memory of the process."""
MOST_CHARACTERS = 64 << 20
"""The longest text that a template may write."""

CHAT, QUESTION = "chat", "question"
"""Kinds of templates: as transformers renders them; and with all line breaks as they are."""


class TemplateFailed(ValueError):
    """A template raised an error, or took too long, or too much memory."""


class TemplateProcess:
    """The process of this one; started when the first text is asked for, and again after its end.
    Any thread may ask."""

    def __init__(self, computed_seconds: float = COMPUTED_SECONDS) -> None:
        self._computed_seconds = computed_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def render(self, kind: str, template: str, values: Mapping[str, Any]) -> str:
        """The text of a template.

        Args:
            kind: :data:`CHAT` or :data:`QUESTION`.
            template: the template, in Jinja.
            values: the values that it may use, as JSON represents them.

        Raises:
            TemplateFailed: in one line.
        """
        order = json.dumps({"kind": kind, "template": template, "values": values}).encode() + b"\n"
        with self._lock:
            if self._process is None or self._owner != os.getpid():
                self._start()
            assert self._process is not None
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None and stdout is not None
            try:
                stdin.write(order)
                stdin.flush()
                reply = stdout.readline()
            except BrokenPipeError:
                reply = b""
            if not reply.endswith(b"\n"):
                raise TemplateFailed(self._end())
        answer = json.loads(reply)
        if "error" in answer:
            raise TemplateFailed(answer["error"])
        return str(answer["text"])

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(self._computed_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C is the run's
        )
        self._owner = os.getpid()

    def _end(self) -> str:
        """Return the way in which the process has ended."""
        assert self._process is not None
        process, self._process = self._process, None
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # Nobody reads what was to be written.
                pipe.close()
        if status == -signal.SIGVTALRM:
            seconds = f"{self._computed_seconds:g} s"
            return f"the template computes for more than {seconds}, perhaps for ever"
        return f"the process of the template ended with status {status}"


template_process = TemplateProcess()
"""The process that renders this process's templates."""


# ---- In the process ----


def main() -> int:
    """Answer orders until the standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = float(sys.argv[1])
    made: dict[tuple[str, str], Any] = {}
    for line in sys.stdin.buffer:
        # Its default action ends the process, also in the middle of one long operation.
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        reply = _answer(line, made)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        _write(sys.stdout.buffer, reply)
    return 0


def _answer(line: bytes, made: dict[tuple[str, str], Any]) -> bytes:
    order = json.loads(line)
    key = order["kind"], order["template"]
    try:
        if key not in made:
            made[key] = _environment(order["kind"]).from_string(order["template"])
        text = made[key].render(**order["values"])
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"the template writes {len(text)} characters")
        return json.dumps({"text": text}).encode()
    except MemoryError:
        reply = f"the template takes more than {MOST_MEMORY >> 20} MiB of memory"
    except Exception as error:
        reply = " ".join((str(error).strip() or type(error).__name__).split())[:2000]
    return json.dumps({"error": reply}).encode()


def _write(output: IO[bytes], reply: bytes) -> None:
    output.write(reply + b"\n")
    output.flush()


def _environment(kind: str) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if kind == QUESTION:
        return ImmutableSandboxedEnvironment(keep_trailing_newline=True)
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols

    class Generation(Extension):
        """``{% generation %}``, by which transformers finds what an assistant has said."""

        tags = {"generation"}  # noqa: RUF012 - as the class that it extends has it

        def parse(self, parser: Any) -> nodes.Node:
            """The text between the tags."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller: Any) -> Any:
            return caller()

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


if __name__ == "__main__":
    sys.exit(main())
