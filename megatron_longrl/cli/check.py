"""Look at every row and every file of a data set before a run does.

Exit status: 0 when every row is usable, 1 when some are not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longrl.cli.output_files import check_output
from megatron_longrl.errors import UserError, error_line
from megatron_longrl.foreign_warnings import ignore_core
from megatron_longrl.models.prompts import prompt_builder

if TYPE_CHECKING:
    from megatron_longrl.config import Config
    from megatron_longrl.data.prompts import PromptBuilder
    from megatron_longrl.data.rows import Row, RowProblem
    from megatron_longrl.media.read_policy import ReadPolicy

_MOST_SHOWN = 20


@dataclass
class Report:
    """The result of checking data files."""

    rows: int = 0
    """All that the files have."""
    problems: list[RowProblem] = field(default_factory=list)
    """One for each row that cannot be used."""
    media: dict[Path, dict[str, Any]] = field(default_factory=dict)
    """Each file that can be read, in the form of the JSON."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Figures of the whole, see :mod:`megatron_longrl.cli.data_summary`."""

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
            "summary": self.summary,
        }


@dataclass(frozen=True)
class Recipe:
    """The way in which a run expands rows."""

    builder: PromptBuilder
    columns: Sequence[str]
    reading: ReadPolicy
    is_rl: bool
    seq_length: int


def check(
    paths: Sequence[str],
    recipe: Recipe | None = None,
    *,
    columns: Sequence[str] = (),
    workers: int = 1,
    journal: Path | None = None,
    told: Callable[[int, int], object] = lambda done, total: None,
) -> Report:
    """Load rows, open each of their files once, and expand them where a recipe says how.

    Args:
        recipe: None looks at rows and files alone.
        columns: ``--data-columns``, where there is no recipe to say it.
        workers: files that are opened at a time.
        journal: see :func:`~megatron_longrl.cli.media_inspection.inspect_media`.
        told: is called with the number of files that are done, and of all.

    Raises:
        UserError: a data file is missing or of another format.
    """
    from megatron_longrl.cli.data_summary import summarize
    from megatron_longrl.cli.media_inspection import inspect_media
    from megatron_longrl.config.data import DataSection
    from megatron_longrl.data.rows import load_rows
    from megatron_longrl.media.read_policy import ReadPolicy

    report = Report()
    rows = load_rows(
        paths,
        problems=report.problems,
        columns=columns if recipe is None else recipe.columns,
        every_turn=recipe is not None and not recipe.is_rl,
    )
    report.rows = len(rows) + len(report.problems)
    data = DataSection()
    reading = ReadPolicy(data.media_timeout, data.media_retries)
    if recipe is not None:
        reading = recipe.reading
    inspected = inspect_media(
        [medium for row in rows for medium in row.media],
        workers=workers,
        reading=reading,
        journal=journal,
        hashes=len(paths) > 1,
        told=told,
    )
    report.media = inspected.found
    builder = None if recipe is None else recipe.builder
    usable, lengths = [], []
    for row in rows:
        problem, length = _look(row, report, inspected.failed, builder)
        if problem is not None:
            report.problems.append(problem)
            continue
        usable.append(row)
        lengths += [] if length is None else [length]
    report.problems.sort(key=lambda problem: problem.location)
    longest = None if recipe is None else recipe.seq_length
    report.summary = summarize(usable, report.media, lengths, longest)
    for known in report.media.values():
        known.pop("content", None)
        known.setdefault("tokens", None)
    return report


def _look(
    row: Row, report: Report, failed: Mapping[Path, str], builder: PromptBuilder | None
) -> tuple[RowProblem | None, int | None]:
    """Return the problem of a row, or its tokens where a recipe gives them; and add the tokens of
    its files to the report.

    Args:
        failed: files that cannot be read, and why.
    """
    from megatron_longrl.data.placeholders import place_media
    from megatron_longrl.data.rows import RowError, RowProblem
    from megatron_longrl.media.media_error import MediaError

    for number, medium in enumerate(row.media):
        if medium.path in failed:
            return RowProblem(row.source, failed[medium.path], str(medium.path)), None
        known = report.media[medium.path]
        if builder is not None and "tokens" not in known:
            try:
                known["tokens"] = builder.media_tokens(row, number)
            except (MediaError, UserError) as error:
                reason = " ".join(str(error).split())
                return RowProblem(row.source, reason, str(medium.path)), None
    try:
        if builder is None:
            texts = [*(text for _, text in row.history), row.problem]
            place_media("".join(texts), [medium.modality for medium in row.media])
            return None, None
        prompt = builder.build(row)
        return None, len(prompt.token_ids) + len(builder.response_ids(row))
    except RowError as error:
        return error.problem, None
    except ValueError as error:
        return RowProblem(row.source, str(error)), None


def recipe_of(arguments: Sequence[str]) -> Recipe:
    """Return how a run with this recipe and these flags expands rows.

    Raises:
        UserError: they do not make a configuration, or have no tokenizer.
    """
    ignore_core()
    from megatron_longrl.data.tokenizer import build_tokenizer
    from megatron_longrl.media.read_policy import ReadPolicy

    config, is_rl = _config(arguments)
    tokenizer = build_tokenizer(config.data.tokenizer_type, config.data.tokenizer_model)
    builder = prompt_builder(config, tokenizer, "rl" if is_rl else "sft")
    data = config.data
    reading = ReadPolicy(data.media_timeout, data.media_retries)
    return Recipe(builder, data.data_columns, reading, is_rl, config.training.seq_length)


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
    answers, leaks = report.summary["answers"], report.summary["leakage"]
    if answers["prior"] is not None:
        write(f"answers {answers['different']}, the most frequent one {answers['prior']:.1%}\n")
    if leaks:
        write(f"leakage {len(leaks)} files are in rows of more than one path\n")
    for problem in report.problems[:_MOST_SHOWN]:
        write(f"{problem}\n")
    more = len(report.problems) - _MOST_SHOWN
    if more > 0:
        write(f"and {more} more; --output FILE takes all\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="longrl check",
        usage="%(prog)s DATA [DATA …] [--config RECIPE] [--data-columns FIELD=COLUMN …]\n"
        "                    [--output FILE] [--html FILE] [--workers N] [flags of a run]",
        description=__doc__,
        epilog="With a recipe, flags of a run (--pretrained-checkpoint DIR, --video-frames 64) may "
        "follow, and tokens are counted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("data", nargs="*", metavar="DATA", help="JSONL files, or folders")
    parser.add_argument("--config", action="append", default=[], metavar="RECIPE", help="YAML")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all as JSON; an "
                        "interrupted check continues from FILE.partial")  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write all as one page")
    parser.add_argument("--workers", type=_workers, default=4, metavar="N", help="files at a time")
    parser.add_argument("--data-columns", nargs="+", default=[], metavar="FIELD=COLUMN",
                        help="columns that have other names than the fields")  # fmt: skip
    flags, others = parser.parse_known_args(arguments)
    try:
        _check_paths(flags)
        recipe = None
        if flags.config or others:
            recipes = [word for recipe in flags.config for word in ("--config", recipe)]
            columns = ["--data-columns", *flags.data_columns] if flags.data_columns else []
            recipe = recipe_of([*recipes, *columns, *others])
        report = _check(flags, recipe)
    except (UserError, OSError) as error:
        sys.stderr.write(error_line(error))
        return 2
    _tell(report, sys.stdout.write)
    return 1 if report.problems else 0


def _workers(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number of at least 1")
    return number


def _check_paths(flags: argparse.Namespace) -> None:
    """Raise an error where no path is given, or --data-columns has taken it."""
    taken = next((word for word in flags.data_columns if "=" not in word), None)
    if taken is not None:
        raise UserError(
            f"--data-columns {taken}: write FIELD=COLUMN, such as answer=solution; paths of data "
            "stand before --data-columns"
        )
    if not flags.data:
        raise UserError("no data: give at least one file or folder")


def _check(flags: argparse.Namespace, recipe: Recipe | None) -> Report:
    """Check with progress on a terminal, and write the files that are asked for."""
    from megatron_longrl.atomic_file import atomic_write_text
    from megatron_longrl.config.data_sources import split_weight
    from megatron_longrl.data.row_files import data_files
    from megatron_longrl.observability.progress import ProgressLines

    given = [Path(split_weight(path)[0]) for path in flags.data]
    read = [file for path in given for file in data_files(path, "train.jsonl")]
    check_output("--output", flags.output, read)
    check_output("--html", flags.html, [*read, *([flags.output] if flags.output else [])])
    bar: list[ProgressLines] = []

    def told(done: int, total: int) -> None:
        if not bar:
            bar.append(ProgressLines("files", total, sys.stderr))
        bar[0].step(done, "")

    journal = None if flags.output is None else Path(f"{flags.output}.partial")
    try:
        report = check(
            flags.data,
            recipe,
            columns=flags.data_columns,
            workers=flags.workers,
            journal=journal,
            told=told,
        )
    finally:
        for shown in bar:
            shown.close()
    told_all = report.as_json()
    if flags.html is not None:
        from megatron_longrl.cli.data_page import page

        atomic_write_text(flags.html, page(told_all, flags.data))
    if flags.output is not None and journal is not None:
        atomic_write_text(flags.output, json.dumps(told_all, indent=1) + "\n")
        journal.unlink(missing_ok=True)
    return report


if __name__ == "__main__":
    sys.exit(main())
