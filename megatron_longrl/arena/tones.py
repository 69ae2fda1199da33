"""Figures and tones: make films with sound, questions and reasoning for a model that hears.

A film shows a coloured figure every half second, and with some of them a low or a high tone sounds.
The questions are which colour is there at the tone, at the high one, at the last one, and how many
tones sound while there is one colour. Neither the pictures nor the sound alone say anything about
an answer; both together give it.

Five sets are written, as JSONL in the row format of LongVideo-Reason: ``sft.jsonl`` to imitate,
``train.jsonl`` for reinforcement learning, and three to measure on: ``heldout.jsonl``,
``silent.jsonl``, the same films without their sound, and ``moved.jsonl``, the same films with their
tones in other scenes, so that another answer is right. No film of the first two sets shows and
sounds the same scenes as a film to measure on.

The demonstrations in ``sft.jsonl`` come from a simulated annotator. In a share of the films
(``--hasty``) he does not listen and guesses; in the others he writes down what is there in each
scene, which he now and then mishears (``--slip``), and what he would answer after it. A model that
imitates him can do the whole task, but often does not; reinforcement learning can find out that
listening pays.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longrl.arena.command_line import (
    OneLineParser,
    even_side,
    listed,
    number,
    run_command,
    run_jobs,
    usable_cores,
    workers_for,
)
from megatron_longrl.arena.tones_film import (
    CHOICES,
    COLOURS,
    PITCHES,
    QUESTIONS,
    SILENT,
    Film,
    Question,
    draw_film,
    draw_question,
    move_tones,
)
from megatron_longrl.arena.tones_render import encode_film, render_frames, render_sound
from megatron_longrl.atomic_file import atomic_write_text

logger = logging.getLogger(__name__)

LETTERS = "ABC"
_HEARD = (*PITCHES, SILENT)

SYMBOLS = tuple(
    dict.fromkeys(
        (
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "I guess.",
            "I listen.",
            *(f" {colour}:" for colour in COLOURS),
            *(f" {heard}," for heard in _HEARD),
            *(
                f" {question.note(choice)}."
                for question in QUESTIONS
                for choice in (None, *range(CHOICES))
            ),
            *(question.text for question in QUESTIONS),
            *(
                f"\n{letter}. {choice}"
                for question in QUESTIONS
                for letter, choice in zip(LETTERS, question.choices, strict=True)
            ),
            *LETTERS,
        )
    )
)
"""Pieces that a tokenizer should have as tokens: they tile every problem and response."""


@dataclass(frozen=True)
class Annotator:
    """The author of the demonstrations.

    Attributes:
        hasty: share of the films in which he guesses.
        slip: probability, per scene that he writes down, of a random tone, or none, in place of
            what is heard.
    """

    hasty: float
    slip: float

    def annotate(self, film: Film, question: Question, rng: np.random.Generator) -> tuple[str, int]:
        """Return the reasoning for a film, and the number of the choice that he takes."""
        if rng.random() < self.hasty:
            return "<think>I guess.</think>", int(rng.integers(CHOICES))
        heard = tuple(
            (None, *range(len(PITCHES)))[rng.integers(1 + len(PITCHES))]
            if rng.random() < self.slip
            else tone
            for tone in film.tones
        )
        steps = []
        for scenes, (colour, tone) in enumerate(zip(film.colours, heard, strict=True), start=1):
            choice = question.answer(replace(film, tones=heard).beginning(scenes))
            what = SILENT if tone is None else PITCHES[tone]
            steps.append(f" {COLOURS[colour]}: {what}, {question.note(choice)}.")
        if choice is None:
            choice = int(rng.integers(CHOICES))
        return f"<think>I listen.{''.join(steps)}</think>", choice


CAREFUL = Annotator(hasty=0.0, slip=0.0)


@dataclass(frozen=True)
class Case:
    """A row and its film.

    Attributes:
        has_sound: whether the film's file gets a track.
    """

    row: dict[str, Any]
    film: Film
    has_sound: bool = True


def make_row(
    film: Film,
    question: Question,
    problem_id: str,
    annotator: Annotator,
    is_checked: bool,
    rng: Any,
) -> dict[str, Any]:
    """The JSONL row of a film.

    Args:
        is_checked: whether its answer is the right one, not the annotator's.
    """
    reasoning, choice = annotator.annotate(film, question, rng)
    if is_checked:
        right = question.answer(film)
        assert right is not None, "films are drawn for their question"
        choice = right
    return {
        "problem_id": problem_id,
        "problem": question.problem,
        "data_type": "video",
        "problem_type": question.kind,
        "reasoning": reasoning,
        "videos": f"{problem_id}.mp4",
        "audio_in_video": True,
        "answer": f"<answer>{LETTERS[choice]}</answer>",
    }


def make_sets(args: argparse.Namespace) -> dict[str, list[Case]]:
    """The cases of every set, none rendered yet; a seed always gives the same ones."""
    annotator = Annotator(args.hasty, args.slip)
    made: dict[str, list[Case]] = {}
    for index, (name, count) in enumerate((("sft", args.sft_films), ("train", args.train_films))):
        rng = np.random.default_rng([args.seed, index])
        made[name] = []
        for place in range(count):
            question = draw_question(rng)
            film = draw_film(question, False, rng)
            row = make_row(film, question, f"{name}-{place:05d}", annotator, name != "sft", rng)
            made[name].append(Case(row, film))
    return made | _measured(args.heldout_films, np.random.default_rng([args.seed, len(made)]))


def _measured(count: int, rng: np.random.Generator) -> dict[str, list[Case]]:
    """The sets to measure on, of as many films each."""
    made: dict[str, list[Case]] = {"heldout": [], "silent": [], "moved": []}
    while len(made["heldout"]) < count:
        question = draw_question(rng)
        film = draw_film(question, True, rng)
        moved = move_tones(film, question, rng)
        if moved is None:
            continue
        place = len(made["heldout"])
        for name, seen in (("heldout", film), ("silent", film), ("moved", moved)):
            row = make_row(seen, question, f"{name}-{place:05d}", CAREFUL, True, rng)
            made[name].append(Case(row, seen, has_sound=name != "silent"))
    return made


@dataclass(frozen=True)
class _Job:
    case: Case
    folder: Path
    size: int


def _run_job(job: _Job) -> None:
    film = job.case.film
    encode_film(
        render_frames(film, job.size),
        render_sound(film) if job.case.has_sound else None,
        job.folder / job.case.row["videos"],
    )


def generate(args: argparse.Namespace) -> dict[str, int]:
    """Write the films and the JSONL files that parsed arguments describe.

    Returns:
        Number of rows per set.
    """
    made = make_sets(args)
    args.output.mkdir(parents=True, exist_ok=True)
    jobs = [_Job(case, args.output, args.size) for cases in made.values() for case in cases]
    workers = workers_for(len(jobs), args.workers)
    logger.info("rendering %d films with %d workers", len(jobs), workers)
    run_jobs(_run_job, jobs, workers)
    for name, cases in made.items():
        lines = [json.dumps(case.row) + "\n" for case in cases]
        atomic_write_text(args.output / f"{name}.jsonl", "".join(lines))
    return {name: len(cases) for name, cases in made.items()}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="python -m megatron_longrl.arena.tones",
        description="Render films with tones, and write JSONL files to train and to measure on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    count, share = number(int, 0, 10**5), number(float, 0.0, 1.0)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for the films and the JSONL files")
    add("--sft-films", type=count, default=3000, help="films in sft.jsonl")
    add("--train-films", type=count, default=1000, help="films in train.jsonl")
    add("--heldout-films", type=count, default=512, help="films in each set to measure on")
    add("--seed", type=number(int, 0, 2**63), default=1234, help="what everything is drawn from")
    add("--size", type=even_side, default=32, help="side of the frames in pixels")
    add("--hasty", type=share, default=0.5, help="share of demonstrations that guess")
    add("--slip", type=share, default=0.03, help="chance per scene to mishear it")
    add("--workers", type=number(int, 1, 256), default=usable_cores(), help="processes that render")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(build_parser(), lambda args: listed(generate(args)), argv)


if __name__ == "__main__":
    sys.exit(main())
