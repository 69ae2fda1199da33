"""Moving-cups clips: what is written is true, repeatable and disjoint."""

import argparse
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from megatron_longrl.arena import cups
from megatron_longrl.arena.cups_render import Clip, Timing, cup_centres, render_clip

SPLITS = ("sft", "train", "heldout")


def run(folder: Path, *extra: str) -> dict[str, list[dict]]:
    """Generate a small data set and return its rows per split."""
    options = ["--clips", "48", "--seed", "7", "--workers", "1", *extra]
    assert cups.main(["--output", str(folder), *options]) == 0
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in SPLITS
    }


def decode(path: Path) -> np.ndarray:
    """RGB frames [frames, height, width, 3] of a video."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_ball_path_follows_the_swaps():
    clip = Clip(0, ((0, 1), (2, 0), (2, 1)), 0)
    assert clip.ball_path() == [0, 1, 1, 2]


@pytest.mark.parametrize("start", [0, 1, 2])
def test_the_ball_is_seen_only_at_the_start_and_where_it_is(start):
    timing = Timing.fit(16, 4, 2)
    clip = Clip(start, ((0, 1), (1, 2)), 3)
    frames = render_clip(clip, timing, 48).astype(float)
    below = frames[:, 30:40].max(-1)  # the band of the ball, under the lifted cups
    by_slot = below.reshape(16, 10, 3, 16).mean((1, 3))
    assert by_slot[0].argmax() == by_slot[1].argmax() == start
    other = render_clip(Clip((start + 1) % 3, clip.swaps, 3), timing, 48)
    assert (frames[2:] == other[2:]).all()


def test_swapping_cups_exchange_places_without_a_jump():
    timing = Timing.fit(40, 1, 2)
    centres, _ = cup_centres(Clip(0, ((0, 2),), 0), timing)
    moving = centres[3 : 3 + timing.per_swap]
    assert moving[0, 0, 0] == pytest.approx(1 / 6, abs=0.01)
    assert moving[-1, 0, 0] == pytest.approx(5 / 6, abs=0.01)
    assert np.abs(np.diff(moving, axis=0)).max() < 0.05
    assert (moving[:, 1] == [0.5, moving[0, 1, 1]]).all()


@pytest.mark.parametrize("codec", ["vp9", "h264"])
def test_writes_readable_videos_and_true_rows(tmp_path, codec):
    rows = run(tmp_path, "--codec", codec, "--hasty", "0.5", "--slip", "0")
    assert [len(rows[name]) for name in SPLITS] == [24, 16, 8]
    place = {name: index for index, name in enumerate(cups.PLACES)}
    for name in SPLITS:
        for row in rows[name]:
            frames = decode(tmp_path / row["videos"])
            assert frames.shape == (16, 32, 32, 3)
            bright = frames[:2, 20:27].astype(float).max(-1)
            seen = [bright[:, :, at : at + 8].mean() for at in (2, 12, 22)]
            said = re.findall(r"starts (\w+)\.", row["reasoning"])
            assert said == [cups.PLACES[int(np.argmax(seen))]]
            assert row["problem"] == cups.PROBLEM and row["data_type"] == "video"
            if "guess" not in row["reasoning"]:
                last = re.findall(r"(\w+)\.", row["reasoning"])[-1]
                assert row["answer"] == f"<answer>{'ABC'[place[last]]}</answer>"
    assert all("guess" not in row["reasoning"] for row in rows["heldout"])
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_careful_reasoning_names_the_swaps_of_the_clip():
    rng = np.random.default_rng(0)
    text, place = cups.CAREFUL.annotate(Clip(2, ((2, 1), (0, 1)), 0), rng)
    want = (
        "<think>The ball starts right. Swap middle-right: middle. Swap left-middle: left.</think>"
    )
    assert (text, place) == (want, 0)


def test_a_seed_repeats_and_another_does_not(tmp_path):
    first, again = run(tmp_path / "a"), run(tmp_path / "b")
    other = run(tmp_path / "c", "--seed", "8")
    assert first == again != other
    for row in first["heldout"]:
        ours, theirs = tmp_path / "a" / row["videos"], tmp_path / "b" / row["videos"]
        assert (decode(ours) == decode(theirs)).all()


def test_processes_do_not_change_the_result(tmp_path):
    one = run(tmp_path / "a", "--clips", "72")
    two = run(tmp_path / "b", "--clips", "72", "--workers", "2")
    assert one == two
    name = one["train"][-1]["videos"]
    assert (decode(tmp_path / "a" / name) == decode(tmp_path / "b" / name)).all()


def test_splits_share_no_clip_and_heldout_no_content():
    args = cups.build_parser().parse_args(["--output", "x", "--clips", "3000"])
    made = cups.make_splits(cups.splits_from_args(args), 4, 1234, "webm")
    clips = [clip for rows in made.values() for clip, _ in rows]
    assert len(set(clips)) == len(clips) == len({clip.style for clip in clips})
    contents = {name: {clip.content for clip, _ in rows} for name, rows in made.items()}
    assert not contents["heldout"] & (contents["sft"] | contents["train"])
    timing = Timing.fit(16, 4, 2)
    sample = [clip for rows in made.values() for clip, _ in rows[:60]]
    seen = {hashlib.sha256(render_clip(clip, timing, 32).tobytes()).digest() for clip in sample}
    assert len(seen) == len(sample)


def test_every_length_has_contents_on_both_sides():
    sides = {
        cups.is_heldout(Clip(start, (pair,), 0))
        for start in range(3)
        for pair in cups.ORDERED_PAIRS
    }
    assert sides == {True, False}


def test_answers_and_annotators_are_as_asked():
    args = cups.build_parser().parse_args(["--output", "x", "--clips", "9000", "--hasty", "0.6"])
    made = cups.make_splits(cups.splits_from_args(args), 4, 5, "webm")
    hasty = np.mean(["guess" in row["reasoning"] for _, row in made["sft"]])
    assert abs(hasty - 0.6) < 0.03
    for rows in made.values():
        letters = [row["answer"][8] for _, row in rows]
        assert max(letters.count(letter) for letter in "ABC") / len(letters) < 0.42
    for clip, row in made["train"] + made["heldout"]:
        assert row["answer"][8] == "ABC"[clip.ball_path()[-1]]


def test_slips_make_followed_answers_wrong():
    rng = np.random.default_rng(0)
    clip = Clip(0, ((0, 1), (1, 2)), 0)
    places = [cups.Annotator(0.0, 1.0).annotate(clip, rng)[1] for _ in range(60)]
    assert set(places) == {0, 1, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "8"], "8 frames are too few for 4 swaps: give at least 11"),
        (["--min-swaps", "5"], "--min-swaps 5 is more than --swaps 4"),
        (["--sft-clips", "40", "--heldout-clips", "20"], "leave none of 48 clips"),
        (["--size", "33"], "--size: 33 is odd"),
        (["--hasty", "2"], "2 is not between 0.0 and 1.0"),
        (["--clips", "many"], "'many' is not a number"),
    ],
)
def test_bad_arguments_end_with_one_line(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *options)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_symbols_tile_every_text():
    args = cups.build_parser().parse_args(["--output", "x", "--clips", "60"])
    pattern = re.compile(
        "|".join(re.escape(s) for s in sorted(cups.SYMBOLS, key=len, reverse=True))
    )
    for rows in cups.make_splits(cups.splits_from_args(args), 4, 1, "webm").values():
        for _, row in rows:
            text = row["problem"] + row["reasoning"] + row["answer"]
            assert pattern.sub("", text) == ""


def test_help_explains_every_option():
    for action in cups.build_parser()._actions:
        assert action.help and action.help is not argparse.SUPPRESS
