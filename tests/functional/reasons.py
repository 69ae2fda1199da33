"""The line that says best why a program has failed, out of all that it has printed."""

from __future__ import annotations

import re

_RAISED = re.compile(r"^(\[rank\d+\]: )?(?P<line>[\w.]*(Error|Exception|Interrupt)\b(: .*)?)$")
_PLACE = re.compile(r"File \"\S*?((megatron_longrl|tools|tests)/\S+)\", line (\d+)")


def reason_of(output: str) -> str:
    """An error line that a user would see; else the last exception, with the last place in this
    project before it; else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    if told:
        return told[-1]
    for number in reversed(range(len(lines))):
        raised = _RAISED.match(lines[number])
        if raised is None:
            continue
        places = [match for line in lines[:number] if (match := _PLACE.search(line))]
        place = f"{places[-1][1]}:{places[-1][3]}: " if places else ""
        return f"{place}{raised['line']}"
    return lines[-1] if lines else "it has printed nothing"
