"""Score responses that anyone wrote, as training would score them, or by a benchmark's rule:
``longrl score DATA.jsonl RESPONSES.jsonl --rewards accuracy format [--output scores.jsonl]``,
``longrl score FOLDER RESPONSES.jsonl --benchmark NAME [--output scores.json]``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.cli.output_files import check_output, files_of
from megatron_longrl.cli.plugins import plugins_of
from megatron_longrl.config.benchmarks import BENCHMARKS
from megatron_longrl.config.flags import Parser, add_section, parse_flags
from megatron_longrl.config.names import FieldNames, flag
from megatron_longrl.config.plugins import PluginSection
from megatron_longrl.config.recipe import read_recipe
from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.config.schema import all_sections, describe_problems
from megatron_longrl.config.secrets import secret_line, secrets_in
from megatron_longrl.data.answer import END_TOKENS, marked_answer, without_end_token
from megatron_longrl.data.rows import Row, load_rows
from megatron_longrl.errors import USER_ERROR_STATUS, UserError, error_line
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.plugins import import_plugins
from megatron_longrl.rewards.registry import is_free_form
from megatron_longrl.rewards.result import RewardResult
from megatron_longrl.rewards.rules import scoring_rules
from megatron_longrl.rewards.scorer import Scorer
from megatron_longrl.rewards.terms import reward_terms
from megatron_longrl.rewards.weighted import total


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, or 2 after an error, which is reported in one
    line."""
    try:
        _score(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        sys.stderr.write(error_line(error))
        return USER_ERROR_STATUS
    return 0


def score_rows(
    rows: Sequence[Row], responses: Sequence[str], settings: RewardSection
) -> list[dict[str, RewardResult]]:
    """The outcome of every reward, by name, for one response to each row.

    A function that scores all responses to a question together gets one response.

    Raises:
        UserError: a user's function or the judge's prompt cannot be loaded.
    """
    scorer = Scorer(settings)
    try:
        scorer.know(scorer.load())
        begun = []
        for row, response in zip(rows, responses, strict=True):
            sample = RewardInput.of_row(row, without_end_token(response, END_TOKENS), uid=row.uid)
            begun.append(
                {
                    term.name: scorer.start(term.name, [sample])
                    if scorer.is_batch(term.name)
                    else scorer.score(term.name, sample)
                    for term in scorer.terms
                }
            )
        return [{name: scorer.result(work)[0] for name, work in of_row.items()} for of_row in begun]
    finally:
        scorer.close()


def read_responses(path: Path) -> list[str]:
    """The field ``response`` of every row of a file.

    Args:
        path: JSON lines; a ``.json`` file holds an array, or what ``longrl evaluate`` writes.

    Raises:
        UserError: the file cannot be read, or a row has no response, with its line.
    """
    return [row["response"] for row in read_predictions(path)]


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, of which each has a field ``response``.

    Raises:
        UserError: the file cannot be read, or a row has no response, with its line.
    """
    rows = []
    for place, row in _rows_of(path):
        if not isinstance(row, dict) or not isinstance(row.get("response"), str):
            what = "has no text 'response'" if isinstance(row, dict) else "is no JSON object"
            raise UserError(f'{path}{place}: the row {what}: write {{"response": "…"}}')
        rows.append(row)
    return rows


def _score(arguments: Sequence[str]) -> None:
    import_plugins(plugins_of(arguments))
    flags = parse_flags(_parser(), arguments)
    flags.pop("plugin", None)
    data, answers = Path(flags.pop("data")), Path(flags.pop("responses"))
    output = flags.pop("output", None)
    benchmark = flags.pop("benchmark", None)
    settings = _settings(flags.pop("config", []), flags)
    if not data.exists():
        raise UserError(f"{data}: no such data file or folder")
    if output is not None:
        check_output("--output", Path(output), [answers, *files_of(data)])
    if benchmark is not None:
        _score_benchmark(benchmark, data, answers, output, settings)
        return
    responses = read_responses(answers)
    rows = load_rows([data])
    if len(rows) != len(responses):
        raise UserError(
            f"{answers}: {len(responses)} responses for the {len(rows)} rows of {data}: write one "
            "for each row, in the order of the data"
        )
    scored = score_rows(rows, responses, settings)
    text = "".join(json.dumps(_record(outcomes)) + "\n" for outcomes in scored)
    if output is None:
        sys.stdout.write(text)
    else:
        _write(output, text)
    sys.stderr.write(_summary(scored, responses, settings) + "\n")


def _score_benchmark(
    name: str, folder: Path, answers: Path, output: str | None, settings: RewardSection
) -> None:
    """Print the table of a benchmark's figures, and write them with the score of every row."""
    # The adapters import libraries that other scores can do without.
    from megatron_longrl.evaluation.predictions import by_problem_id, score_predictions
    from megatron_longrl.evaluation.rows import read_benchmark
    from megatron_longrl.evaluation.table import evaluation_table

    rows = read_benchmark(name, folder)
    responses = by_problem_id(rows, read_predictions(answers), str(answers))
    summary, records = score_predictions(rows, responses, settings)
    sys.stdout.write(evaluation_table(summary) + "\n")
    if output is not None:
        _write(output, json.dumps({**summary, "answers": records}, indent=1))


def _write(output: str, text: str) -> None:
    try:
        atomic_write_text(Path(output), text)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="longrl score",
        usage="%(prog)s DATA RESPONSES [--rewards NAME ... | --benchmark NAME] [--output FILE] "
        "[flags]",
        description="Score responses as training would score them.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="data set: JSON lines, one question a row; with --benchmark the folder of its "
        "published files",
    )
    parser.add_argument(
        "responses",
        metavar="RESPONSES",
        help="JSON lines with a field 'response', one for each row of the data, in its order; "
        "with --benchmark the rows may have a 'problem_id' instead, and be fewer",
    )
    parser.add_argument(
        "--benchmark",
        metavar="NAME",
        help=f"score by the rules of a benchmark: {', '.join(BENCHMARKS.names())}",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="where the scores go, one JSON object a row (default: standard output)",
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help="recipe of a run, of which the fields of the rewards are taken; flags count more",
    )
    for section in (RewardSection, PluginSection):
        add_section(parser, section, FieldNames([section]))
    return parser


def _settings(recipes: Sequence[str], flags: Mapping[str, Any]) -> RewardSection:
    names, values, origins = FieldNames(all_sections()), dict[str, Any](), dict[str, str]()
    for recipe in recipes:
        found, where = read_recipe(recipe, names)
        values |= {name: found[name] for name in RewardSection.flat_names() if name in found}
        origins |= where
    values |= flags
    origins |= {name: f"flag {flag(name)}" for name in flags}
    try:
        settings = RewardSection.model_validate(values)
    except ValidationError as error:
        wrong = [dict(problem) for problem in error.errors(include_url=False)]
        raise UserError(describe_problems(wrong, origins)) from None
    secrets = map(secret_line, secrets_in(settings.model_dump()))
    if problems := [*secrets, *scoring_rules(settings)]:
        raise UserError("; ".join(problems))
    return settings


def _rows_of(path: Path) -> Iterator[tuple[str, Any]]:
    """(":line" or "[index]", row)."""
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix == ".json":
        whole = _parsed(text, str(path))
        rows = whole.get("answers") if isinstance(whole, dict) else whole
        if not isinstance(rows, list):
            raise UserError(f"{path}: a .json file must hold one array of rows")
        yield from ((f"[{index}]", row) for index, row in enumerate(rows))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f":{number}", _parsed(line, f"{path}:{number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "a number or nesting without end"
        raise UserError(f"{where}: not JSON ({reason})") from None


def _record(outcomes: Mapping[str, RewardResult]) -> dict[str, float | str | None]:
    """A row of the output: scores and further numbers by name; why there is none, under reason."""
    record: dict[str, float | str | None] = {}
    for name, outcome in outcomes.items():
        record[name] = outcome.score
        record |= {f"{name}/{key}": value for key, value in outcome.extras.items()}
    failed = {name: o.error or "no score" for name, o in outcomes.items() if o.score is None}
    if len(failed) == 1:
        record["reason"] = next(iter(failed.values()))
    elif failed:
        record["reason"] = "; ".join(f"{name}: {error}" for name, error in failed.items())
    return record


def _summary(
    scored: Sequence[Mapping[str, RewardResult]], responses: Sequence[str], settings: RewardSection
) -> str:
    """Means, and what may be the reason where they are low."""
    terms = reward_terms(settings)
    parts = [_mean(term.name, [outcomes[term.name].score for outcomes in scored]) for term in terms]
    parts.append(_mean("reward", [total(terms, outcomes) for outcomes in scored]))
    line = f"means of {len(scored)} responses: {', '.join(parts)}"
    silent = sum(marked_answer(without_end_token(text, END_TOKENS)) is None for text in responses)
    if silent and any(term.file is None and not is_free_form(term.name) for term in terms):
        line += (
            f"; {silent} of them mark no answer by <answer>…</answer> or \\boxed{{…}} after the "
            "thought: all that follows it was read"
        )
    return line


def _mean(name: str, scores: Sequence[float | None]) -> str:
    known = [score for score in scores if score is not None]
    missing = len(scores) - len(known)
    mean = f"{sum(known) / len(known):.4f}" if known else "none"
    return f"{name} {mean}" + (f" ({missing} without)" if missing else "")


if __name__ == "__main__":
    sys.exit(main())
