"""Look at every row and every file of a data set before a run does.

Exit status: 0 when every row is usable, 1 when some are not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longrl.errors import UserError, error_line
from megatron_longrl.foreign_warnings import ignore_core
from megatron_longrl.models.prompts import prompt_builder

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.data.prompts import PromptBuilder
    from megatron_longrl.data.rows import Row, RowProblem
    from megatron_longrl.media.modality import MediaFile

_MOST_SHOWN = 20


@dataclass
class Report:
    """The result of checking data files."""

    rows: int = 0
    """All that the files have."""
    problems: list[RowProblem] = field(default_factory=list)
    """One for each row that cannot be used."""
    media: dict[Path, dict[str, Any]] = field(default_factory=dict)
    """Each file that can be read, as it stands in the JSON."""

    @property
    def usable(self) -> int:
        """Rows without a problem."""
        return self.rows - len(self.problems)

    def as_json(self) -> dict[str, Any]:
        """The content of ``--output``."""
        problems = []
        for problem in self.problems:
            file, line = problem.location
            problems.append(
                {"file": file, "line": line, "media": problem.media, "reason": problem.reason}
            )
        return {
            "rows": self.rows,
            "usable": self.usable,
            "problems": problems,
            "media": list(self.media.values()),
        }


def check(paths: Sequence[str], builder: PromptBuilder | None = None) -> Report:
    """Load rows, open each of their files once, and expand them where a recipe says how.

    Args:
        builder: of the recipe; None looks at rows and files alone.

    Raises:
        UserError: a data file is missing or of another format.
    """
    from megatron_longrl.data.rows import load_rows

    report = Report()
    rows = load_rows(paths, problems=report.problems)
    report.rows = len(rows) + len(report.problems)
    failed: dict[Path, str] = {}
    for row in rows:
        problem = _look(row, report, failed, builder)
        if problem is not None:
            report.problems.append(problem)
    report.problems.sort(key=lambda problem: problem.location)
    return report


def _look(
    row: Row, report: Report, failed: dict[Path, str], builder: PromptBuilder | None
) -> RowProblem | None:
    """Return the problem of a row, and add its files to the report.

    Args:
        failed: files that cannot be read, and why.
    """
    from megatron_longrl.data.placeholders import place_media
    from megatron_longrl.data.rows import RowError, RowProblem
    from megatron_longrl.media.foreign_errors import as_error_of
    from megatron_longrl.media.media_error import MediaError

    for number, medium in enumerate(row.media):
        path = medium.path
        if path not in report.media and path not in failed:
            try:
                with as_error_of(path):
                    found = _media(medium)
                    found["tokens"] = builder.media_tokens(row, number) if builder else None
                report.media[path] = found
            except (MediaError, UserError) as error:
                failed[path] = " ".join(str(error).split())
        if path in failed:
            return RowProblem(row.source, failed[path], str(path))
    try:
        if builder is None:
            place_media(row.problem, [medium.modality for medium in row.media])
        else:
            builder.build(row)
    except RowError as error:
        return error.problem
    except ValueError as error:
        return RowProblem(row.source, str(error))
    return None


def _media(medium: MediaFile) -> dict[str, Any]:
    from megatron_longrl.media.modality import MODALITIES

    info = MODALITIES.find(medium.modality).inspect(medium.path)
    names = ("frames", "seconds", "fps", "width", "height")
    return {"path": str(medium.path), **{name: info.get(name) for name in names}}


def builder_of(arguments: Sequence[str]) -> PromptBuilder:
    """Return the builder of prompts under the recipe and flags of a run.

    Raises:
        UserError: they do not make a configuration, or have no tokenizer.
    """
    ignore_core()
    from megatron_longrl.data.tokenizer import build_tokenizer

    config, is_rl = _config(arguments)
    tokenizer = build_tokenizer(config.data.tokenizer_type, config.data.tokenizer_model)
    return prompt_builder(config, tokenizer, "rl" if is_rl else "sft")


def _config(arguments: Sequence[str]) -> tuple[Config, bool]:
    """The configuration, and whether it is one of reinforcement learning."""
    from megatron_longrl.cli.load import load_data_config

    config, given = load_data_config(arguments)
    return config, bool(given.values.get("grpo_prompts_per_step"))


def _tell(report: Report, write: Callable[[str], object]) -> None:
    """A short table, and the first problems."""
    write(f"rows    {report.rows}, of which {report.usable} can be used\n")
    found = list(report.media.values())
    if found:
        frames = [m["frames"] for m in found if m["frames"] is not None]
        seconds = [m["seconds"] for m in found if m["seconds"] is not None]
        sizes = {(m["width"], m["height"]) for m in found if m["width"] is not None}
        write(f"media   {len(found)} files can be read\n")
        if frames:
            write(f"frames  {min(frames)} to {max(frames)}, {sum(frames)} together\n")
        if seconds:
            together = f"{sum(seconds):.1f} together"
            write(f"seconds {min(seconds):.1f} to {max(seconds):.1f}, {together}\n")
        if sizes:
            by_size = sorted(sizes, key=lambda size: size[0] * size[1])
            write("size    {}x{} to {}x{}\n".format(*by_size[0], *by_size[-1]))
        tokens = [m["tokens"] for m in found if m["tokens"] is not None]
        if tokens:
            write(f"tokens  {min(tokens)} to {max(tokens)}, {sum(tokens)} together\n")
    for problem in report.problems[:_MOST_SHOWN]:
        write(f"{problem}\n")
    more = len(report.problems) - _MOST_SHOWN
    if more > 0:
        write(f"and {more} more; --output FILE takes all\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="longrl check",
        description=__doc__,
        epilog="With a recipe, flags of a run (--pretrained-checkpoint DIR, --video-frames 64) may "
        "follow, and tokens are counted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="JSONL files, or folders")
    parser.add_argument("--config", action="append", default=[], metavar="RECIPE", help="YAML")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all as JSON")
    flags, others = parser.parse_known_args(arguments)
    try:
        builder = None
        if flags.config or others:
            recipes = [word for recipe in flags.config for word in ("--config", recipe)]
            builder = builder_of([*recipes, *others])
        report = check(flags.data, builder)
        if flags.output is not None:
            from megatron_longrl.atomic_file import atomic_write_text

            atomic_write_text(flags.output, json.dumps(report.as_json(), indent=1) + "\n")
    except (UserError, OSError) as error:
        sys.stderr.write(error_line(error))
        return 2
    _tell(report, sys.stdout.write)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
