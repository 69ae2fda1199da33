"""The result of an evaluation as a small table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_longrl.errors import printable


def evaluation_table(summary: Mapping[str, Any]) -> str:
    """A line for every figure of :func:`~megatron_longrl.rl.summary.summarize`."""
    percent = "{:6.1%}".format
    rows = [
        (
            "accuracy",
            f"{percent(summary['accuracy'])}   95 % interval {summary['accuracy_low']:.1%} to "
            f"{summary['accuracy_high']:.1%}",
        )
    ]
    kinds = summary["by_problem_type"]
    if len(kinds) > 1:
        rows += [(f"  {printable(kind)}", percent(rate)) for kind, rate in kinds.items()]
    rows.append(("chance", f"{percent(summary['chance_accuracy'])}   a guess among the options"))
    rows.append(
        ("majority", f"{percent(summary['majority_accuracy'])}   always the most frequent answer")
    )
    rows.append(("format", percent(summary["format"])))
    if summary["reward"] is not None:
        rows.append(("reward", f"{summary['reward']:6.3f}"))
    rows.append(("response length", f"{summary['response_length']:6.1f}   tokens"))
    rows.append(("samples", f"{summary['samples']:6d}   skipped: {summary['samples_skipped']:.0f}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)
