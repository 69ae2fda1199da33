"""Moving cups: make clips, questions and reasoning for the quickstart.

A ball is shown under one of three cups, the cups are lowered and change places a few times;
the question is where the ball is at the end. Every answer can be checked, nothing is looked up.

Three sets are written, as JSONL in the row format of LongVideo-Reason: ``sft.jsonl`` to
imitate, ``train.jsonl`` for reinforcement learning and ``heldout.jsonl`` to measure on.
No clip is in two sets, and what happens in a held-out clip (start, swaps, and which cup passes
behind) happens in no clip of the other two.

The demonstrations in ``sft.jsonl`` come from a simulated annotator, and he is not a good one.
In a share of the clips (``--hasty``) he notes where the ball starts, does not follow the swaps
and guesses the answer; in the others he follows each swap, but now and then loses the ball
(``--slip``). A model that imitates him can do the whole task but mostly does not.
Reinforcement learning, which sees only whether the answer was right, can find out that
following pays; going on to imitate him does not show it. That gap is built into the data on
purpose: it makes a small, quick and visible experiment, and a gain on it says that the training
works, not how much a real model would gain.

The reasoning in ``train.jsonl`` is his too (with the right answer after it), that in
``heldout.jsonl`` follows every swap.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from megatron_longrl.arena.cups_render import CODECS, Clip, Timing, encode_clip, render_clip
from megatron_longrl.atomic_file import atomic_write_text
from megatron_longrl.errors import UserError

logger = logging.getLogger(__name__)

PLACES = ("left", "middle", "right")
LETTERS = "ABC"
PROBLEM = "Where is the ball at the end?\nA. left\nB. middle\nC. right"
PAIRS = ((0, 1), (1, 2), (0, 2))
ORDERED_PAIRS = tuple(pair for low, high in PAIRS for pair in ((low, high), (high, low)))
HELDOUT_ONE_IN = 4  # one in so many contents may only be used in heldout.jsonl

# Pieces that a SentencePiece tokenizer should get as ``user_defined_symbols``: with them a
# swap costs two tokens. They tile every problem and response of this module.
SYMBOLS = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "The ball starts",
    *(f" {place}." for place in PLACES),
    *(f" Swap {PLACES[low]}-{PLACES[high]}:" for low, high in PAIRS),
    " I guess.",
    "Where is the ball at the end?",
    *(f"\n{letter}. {place}" for letter, place in zip(LETTERS, PLACES, strict=True)),
    *LETTERS,
)


@dataclass(frozen=True)
class Annotator:
    """The author of the demonstrations.

    Attributes:
        hasty: share of the clips in which he guesses instead of following the swaps.
        slip: probability, per swap that he follows, of losing the ball to a random cup.
    """

    hasty: float
    slip: float

    def annotate(self, clip: Clip, rng: np.random.Generator) -> tuple[str, int]:
        """Write the reasoning for a clip, and the place (0 to 2) that he takes for the answer."""
        start = f"<think>The ball starts {PLACES[clip.start]}."
        if rng.random() < self.hasty:
            return f"{start} I guess.</think>", int(rng.integers(3))
        place, steps = clip.start, []
        for pair in clip.swaps:
            place = Clip(place, (pair,), 0).ball_path()[-1]
            if rng.random() < self.slip:
                place = int(rng.integers(3))
            low, high = sorted(pair)
            steps.append(f" Swap {PLACES[low]}-{PLACES[high]}: {PLACES[place]}.")
        return f"{start}{''.join(steps)}</think>", place


CAREFUL = Annotator(hasty=0.0, slip=0.0)


@dataclass(frozen=True)
class Split:
    """One of the JSONL files: its name, number of clips, least number of swaps, annotator."""

    name: str
    clips: int
    min_swaps: int
    annotator: Annotator
    heldout: bool = False
    checked: bool = True  # the answer column holds the right answer, not the annotator's


def is_heldout(clip: Clip) -> bool:
    """Whether what happens in this clip is set aside for ``heldout.jsonl``."""
    return zlib.crc32(repr(clip.content).encode()) % HELDOUT_ONE_IN == 0


def draw_clips(split: Split, max_swaps: int, rng: np.random.Generator) -> Iterator[Clip]:
    """Draw the clips of a split, the number of swaps evenly from its least to ``max_swaps``."""
    for _ in range(split.clips):
        count = int(rng.integers(split.min_swaps, max_swaps + 1))
        while True:
            swaps = tuple(ORDERED_PAIRS[i] for i in rng.integers(len(ORDERED_PAIRS), size=count))
            clip = Clip(int(rng.integers(3)), swaps, int(rng.integers(2**62)))
            if is_heldout(clip) == split.heldout:
                break
        yield clip


def make_row(
    clip: Clip, problem_id: int, video: str, split: Split, rng: np.random.Generator
) -> dict[str, Any]:
    """The JSONL row of a clip; ``video`` is its path relative to the JSONL's folder."""
    reasoning, place = split.annotator.annotate(clip, rng)
    if split.checked:
        place = clip.ball_path()[-1]
    return {
        "problem_id": problem_id,
        "problem": PROBLEM,
        "data_type": "video",
        "problem_type": "temporal",
        "reasoning": reasoning,
        "videos": video,
        "answer": f"<answer>{LETTERS[place]}</answer>",
    }


def make_splits(
    splits: Sequence[Split], max_swaps: int, seed: int, extension: str
) -> dict[str, list[tuple[Clip, dict[str, Any]]]]:
    """Clips and rows of every split, none rendered yet; a seed always gives the same ones."""
    made: dict[str, list[tuple[Clip, dict[str, Any]]]] = {}
    problem_id = 0
    for index, split in enumerate(splits):
        rng = np.random.default_rng([seed, index])
        rows = []
        for clip in draw_clips(split, max_swaps, rng):
            video = f"clip-{problem_id:06d}.{extension}"
            rows.append((clip, make_row(clip, problem_id, video, split, rng)))
            problem_id += 1
        made[split.name] = rows
    return made


@dataclass(frozen=True)
class _Job:
    clip: Clip
    path: Path
    timing: Timing
    size: int
    codec: str
    quality: int
    fps: int


def _run_job(job: _Job) -> None:
    frames = render_clip(job.clip, job.timing, job.size)
    encode_clip(frames, job.path, job.codec, job.quality, job.fps)


def splits_from_args(args: argparse.Namespace) -> list[Split]:
    """The three splits; sizes that are not given follow from ``--clips``."""
    sft = args.clips // 2 if args.sft_clips is None else args.sft_clips
    heldout = args.clips // 6 if args.heldout_clips is None else args.heldout_clips
    train = args.clips - sft - heldout
    if sft < 0 or heldout < 0 or train < 0:
        raise UserError(
            f"--sft-clips {sft} and --heldout-clips {heldout} leave none of {args.clips} clips"
            " for train.jsonl: raise --clips"
        )
    annotator = Annotator(args.hasty, args.slip)
    return [
        Split("sft", sft, args.sft_min_swaps, annotator, checked=False),
        Split("train", train, args.min_swaps, annotator),
        Split("heldout", heldout, args.min_swaps, CAREFUL, heldout=True),
    ]


def generate(args: argparse.Namespace) -> dict[str, int]:
    """Write the clips and the JSONL files that parsed arguments describe.

    Returns:
        Number of rows per split.

    Raises:
        UserError: the arguments contradict each other.
    """
    timing = Timing.fit(args.frames, args.swaps, args.reveal)
    for name, least in (("--min-swaps", args.min_swaps), ("--sft-min-swaps", args.sft_min_swaps)):
        if least > args.swaps:
            raise UserError(f"{name} {least} is more than --swaps {args.swaps}")
    splits = splits_from_args(args)
    made = make_splits(splits, args.swaps, args.seed, CODECS[args.codec][1])
    args.output.mkdir(parents=True, exist_ok=True)
    jobs = [
        _Job(
            clip,
            args.output / str(row["videos"]),
            timing,
            args.size,
            args.codec,
            args.quality,
            args.fps,
        )
        for rows in made.values()
        for clip, row in rows
    ]
    workers = workers_for(len(jobs), args.workers)
    logger.info("rendering %d clips with %d workers", len(jobs), workers)
    run_jobs(_run_job, jobs, workers)
    for name, rows in made.items():
        lines = [json.dumps(row) + "\n" for _, row in rows]
        atomic_write_text(args.output / f"{name}.jsonl", "".join(lines))
    return {name: len(rows) for name, rows in made.items()}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(
        prog="python -m megatron_longrl.arena.cups",
        description="Render moving-cups clips and write sft.jsonl, train.jsonl, heldout.jsonl.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    count, share = number(int, 0, 10**6), number(float, 0.0, 1.0)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for the clips and the JSONL files")
    add("--clips", type=count, default=6000, help="number of clips of the three sets together")
    add("--sft-clips", type=count, help="clips in sft.jsonl; without it, half of --clips")
    add("--heldout-clips", type=count, help="clips in heldout.jsonl; without it, a sixth")
    add("--seed", type=number(int, 0, 2**63), default=1234, help="what everything is drawn from")
    add("--swaps", type=number(int, 1, 64), default=4, help="largest number of swaps in a clip")
    add("--min-swaps", type=number(int, 1, 64), default=2, help="least, in train and heldout")
    add("--sft-min-swaps", type=number(int, 1, 64), default=1, help="least, in sft.jsonl")
    add("--frames", type=number(int, 4, 4096), default=16, help="frames of every clip")
    add("--reveal", type=number(int, 1, 64), default=2, help="frames that show the ball")
    add("--size", type=even_side, default=32, help="side of the frames in pixels")
    add("--fps", type=number(int, 1, 120), default=4, help="frames per second")
    add("--codec", choices=sorted(CODECS), default="vp9", help="vp9 in WebM or h264 in MP4")
    add("--quality", type=number(int, 0, 51), default=20, help="rate factor, lower is better")
    add("--hasty", type=share, default=0.65, help="share of demonstrations that guess")
    add("--slip", type=share, default=0.1, help="chance per followed swap to lose the ball")
    add("--workers", type=number(int, 1, 256), default=usable_cores(), help="processes that render")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_command(build_parser(), lambda args: listed(generate(args)), argv)


if __name__ == "__main__":
    sys.exit(main())
