"""The report of a checked data set as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left;
vertical-align: top; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #4c78a8; height: .8rem; } .track { width: 16rem; }
"""
_MOST_PROBLEMS = 1000
"""Problems on the page; the JSON has all."""


def page(report: Mapping[str, Any], sources: Sequence[str]) -> str:
    """Return the page.

    Args:
        report: the report that ``--output`` writes.
        sources: the paths that were checked.
    """
    summary = report["summary"]
    names = dict(enumerate(sources))
    parts = {names[int(part)]: count for part, count in summary["sources"].items()}
    usable = f"{report['usable']} of {report['rows']} rows can be used"
    answers = summary["answers"]
    prior = "" if answers["prior"] is None else f", the most frequent one {answers['prior']:.1%}"
    sections = [
        _section("Rows", f"<p>{usable}.</p>" + _bars(parts)),
        _section("Kinds of questions", _bars(summary["categories"])),
        _section(f"Answers: {answers['different']} different{prior}", _bars(answers["most"])),
        _section("Seconds of videos and sounds", _figures(summary["seconds"])),
        _section("Sizes", _bars(summary["sizes"])),
        _section("Codecs", _bars(summary["codecs"])),
        _section("Tokens of a row", _figures(summary["tokens"])),
        _section("Media in more than one source", _leaks(summary["leakage"], names)),
        _section(f"Problems: {len(report['problems'])}", _problems(report["problems"])),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>longrl check</title>'
        f"<style>{_STYLE}</style><h1>longrl check</h1>{''.join(sections)}</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content or '<p>None.</p>'}"


def _bars(counts: Mapping[str, int]) -> str:
    most = max(counts.values(), default=0)
    lines = [
        f'<tr><td>{_text(name)}</td><td class="number">{count}</td><td class="track">'
        f'<div class="bar" style="width:{100 * count / most:.1f}%"></div></td></tr>'
        for name, count in counts.items()
    ]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def _figures(values: Mapping[str, Any] | None) -> str:
    lines = [
        f'<tr><th>{_text(name)}</th><td class="number">{value:,.6g}</td></tr>'
        for name, value in (values or {}).items()
        if value is not None
    ]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def _leaks(found: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> str:
    lines = [
        f"<tr><td>{'<br>'.join(map(_text, leak['paths']))}</td>"
        f"<td>{'<br>'.join(_text(names[part]) for part in leak['sources'])}</td></tr>"
        for leak in found
    ]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def _problems(problems: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"<tr><td>{_text(problem['file'])}:{problem['line']}</td>"
        f"<td>{_text(problem['reason'])}</td></tr>"
        for problem in problems[:_MOST_PROBLEMS]
    ]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def _text(text: Any) -> str:
    """Text of data, in which nothing is HTML and half characters are escaped."""
    return escape(str(text).encode("utf-8", "backslashreplace").decode())
