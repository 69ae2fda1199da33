"""Rows with which a model learns both to reason and to answer directly, from rows with reasoning.

Every row is there twice: in the prompt template that asks for reasoning, with its reasoning, and as
it is, without.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jinja2

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.data.rows import load_rows
from megatron_longrl.data.templates import PROMPT_TEMPLATES
from megatron_longrl.errors import UserError


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="JSONL file of rows with reasoning"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="JSONL file to write, in the same folder"
    )
    args = parser.parse_args()
    template = jinja2.Template(PROMPT_TEMPLATES["think-answer"])
    try:
        rows = load_rows([args.data])
        if args.output.resolve().parent != args.data.resolve().parent:
            raise UserError(
                f"--output {args.output}: choose the folder of {args.data}, to which "
                "the paths of videos are relative"
            )
        lines = []
        for row in rows:
            common = {
                "answer": row.answer,
                "problem_type": row.problem_type,
                "videos": [path.name for path in row.videos],
            }
            thought = {"problem": template.render(question=row.problem), "reasoning": row.reasoning}
            direct = {"problem": row.problem}
            for name, fields in (("reasoning", thought), ("direct", direct)):
                named = {"problem_id": f"{row.problem_id}-{name}"}
                lines.append(json.dumps(named | common | fields))
        atomic_write_text(args.output, "\n".join([*lines, ""]))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
