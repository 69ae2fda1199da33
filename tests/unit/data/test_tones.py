"""Figures and tones: what is written is true, repeatable and disjoint, and no answer is seen alone
or heard alone."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_longrl.arena import tones
from megatron_longrl.arena.tones_film import (
    CHOICES,
    KINDS,
    QUESTIONS,
    SCENES,
    Film,
    draw_film,
    draw_question,
)
from megatron_longrl.arena.tones_render import SCENE_SECONDS
from megatron_longrl.data.tokenizer import build_tokenizer
from megatron_longrl.media.modalities.audio.track import (
    RATE,
    film_excerpt,
    find_track,
    samples_of,
)

SETS = ("sft", "train", "heldout", "silent", "moved")
SIZES = ("--sft-films", "12", "--train-films", "6", "--heldout-films", "8")


def run(folder: Path, *extra: str) -> dict[str, list[dict[str, Any]]]:
    """Render a small data set and return its rows per set."""
    options = [*SIZES, "--seed", "7", "--workers", "1", *extra]
    assert tones.main(["--output", str(folder), *options]) == 0
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in SETS
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("tones")
    return folder, run(folder, "--hasty", "0", "--slip", "0")


def seen(path: Path) -> list[int]:
    """The colour of each scene, by the pixels."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert len(frames) == 2 * SCENES
    middle = frames.astype(float)[:, 12:20, 12:20].mean((1, 2))
    return [int(colour) for colour in middle.reshape(SCENES, 2, 3).mean(1).argmax(1)]


def heard(path: Path) -> list[int | None]:
    """The tone of each scene, by the loudest frequency."""
    excerpt = film_excerpt(path)
    assert excerpt.samples == SCENES * SCENE_SECONDS * RATE
    track = np.zeros(excerpt.samples)
    for first, samples in samples_of(path, excerpt):
        track[first : first + len(samples)] = samples
    found: list[int | None] = []
    for scene in np.split(track, SCENES):
        power = np.abs(np.fft.rfft(scene))
        hertz = power.argmax() / SCENE_SECONDS
        found.append(None if np.abs(scene).max() < 0.05 else int(hertz > 1000))
    return found


@pytest.mark.parametrize("name", ["train", "heldout", "moved"])
def test_rows_tell_what_is_seen_and_heard(made, name):
    folder, rows = made
    rng = np.random.default_rng(0)
    for row in rows[name]:
        path = folder / row["videos"]
        film = Film(tuple(seen(path)), tuple(heard(path)), 0)
        (question,) = [q for q in QUESTIONS if q.problem == row["problem"]]
        right = question.answer(film)
        assert right is not None
        assert row["answer"] == f"<answer>{'ABC'[right]}</answer>"
        assert row["reasoning"] == tones.CAREFUL.annotate(film, question, rng)[0]
        assert (row["problem_type"], row["audio_in_video"]) == (question.kind, True)


def test_the_sets_to_measure_on_show_the_same_films(made):
    folder, rows = made
    for told, silent, moved in zip(rows["heldout"], rows["silent"], rows["moved"], strict=True):
        paths = [folder / row["videos"] for row in (told, silent, moved)]
        assert seen(paths[0]) == seen(paths[1]) == seen(paths[2])
        assert find_track(paths[1]) is None and find_track(paths[0]) is not None
        assert told["problem"] == silent["problem"] == moved["problem"]
        assert told["answer"] == silent["answer"] != moved["answer"]
        assert sorted(map(str, heard(paths[0]))) == sorted(map(str, heard(paths[2])))


def test_neither_eye_nor_ear_alone_can_answer():
    """The best guess by the pictures, or by the sound, is right one time in three; together they
    leave nothing open."""
    rng = np.random.default_rng(0)
    by: dict[str, dict[Any, Counter[int]]] = {name: defaultdict(Counter) for name in ("eye", "ear")}
    for _ in range(6000):
        question = draw_question(rng)
        film = draw_film(question, bool(rng.integers(2)), rng)
        answer = question.answer(film)
        assert answer is not None and answer in range(CHOICES)
        by["eye"][question.text, film.colours[0], film.colours[-1]][answer] += 1
        by["ear"][question.text, film.sounding()[0], film.sounding()[-1]][answer] += 1
    for name, found in by.items():
        best = sum(max(counts.values()) for counts in found.values())
        assert best / 6000 < 0.44, f"{name}: a third, and what so few films leave to chance"


def test_kinds_are_equally_frequent():
    rng = np.random.default_rng(1)
    counts = Counter(draw_question(rng).kind for _ in range(4000))
    assert set(counts) == set(KINDS) and min(counts.values()) > 900


def test_a_film_to_measure_on_happens_in_no_other_set():
    args = tones.build_parser().parse_args(["--output", "x", "--heldout-films", "300"])
    made = tones.make_sets(args)
    contents = {
        name: {(case.film.colours, case.film.tones) for case in cases}
        for name, cases in made.items()
    }
    measured = contents["heldout"] | contents["moved"]
    assert contents["heldout"] == contents["silent"]
    assert not measured & (contents["sft"] | contents["train"])


def test_a_seed_repeats_and_another_does_not(tmp_path, made):
    again = run(tmp_path / "b", "--hasty", "0", "--slip", "0")
    assert again == made[1]
    name = again["heldout"][0]["videos"]
    assert (tmp_path / "b" / name).read_bytes() == (made[0] / name).read_bytes()
    args = tones.build_parser().parse_args(["--output", "x", *SIZES, "--seed", "8"])
    other = [case.row for case in tones.make_sets(args)["heldout"]]
    assert other != again["heldout"]


def scenes_of(reasoning: str) -> list[str]:
    """Colour and tone of each scene, as they are written down."""
    return [step.split(",")[0] for step in reasoning.split(".")[1:-1]]


@pytest.mark.parametrize(
    ("number", "so_far"),
    [
        (0, "unknown red red red red red"),
        (2, "unknown unknown unknown unknown green green"),
        (3, "none one one one one one"),
        (4, "none none none none one one"),
        (6, "unknown red red red red red"),
        (7, "unknown red red red green green"),
    ],
)
def test_the_answer_so_far_is_noted_after_every_scene(number, so_far):
    question = QUESTIONS[number]
    film = Film((2, 0, 0, 2, 1, 1), (None, 0, None, None, 1, None), 0)
    if question.kind == "moment":
        film = Film(film.colours, (None, 0, None, None, None, None), 0)
    text, choice = tones.CAREFUL.annotate(film, question, np.random.default_rng(0))
    steps = text.split(".")[1:-1]
    written = [step.split(", ")[1].removeprefix(f"{question.about} ") for step in steps]
    assert written == so_far.split() and all(question.about in step for step in steps)
    assert question.choices[choice] == written[-1]


def test_annotator_is_as_hasty_and_as_deaf_as_asked():
    rng = np.random.default_rng(2)
    question = QUESTIONS[0]
    films = [draw_film(question, False, rng) for _ in range(400)]
    told = [tones.Annotator(0.25, 0.5).annotate(film, question, rng)[0] for film in films]
    assert 60 < sum("guess" in text for text in told) < 140
    right = [tones.CAREFUL.annotate(film, question, rng)[0] for film in films]
    slips = [
        ours != theirs
        for one, two in zip(told, right, strict=True)
        if "guess" not in one
        for ours, theirs in zip(scenes_of(one), scenes_of(two), strict=True)
    ]
    assert 0.28 < np.mean(slips) < 0.39, "half of them are drawn anew, and a third hit by chance"


def test_a_folder_holds_a_model_and_every_phrase_is_a_token(tmp_path):
    from megatron_longrl.arena.tones_folder import main
    from megatron_longrl.conversion.hf import config_from_hf

    assert main(["--output", str(tmp_path)]) == 0
    assert config_from_hf(tmp_path)["model_family"] == "qwen2_5_omni"
    tokenizer = build_tokenizer("HuggingFaceTokenizer", tmp_path)
    rng = np.random.default_rng(3)
    for question in QUESTIONS:
        reasoning, _ = tones.CAREFUL.annotate(draw_film(question, False, rng), question, rng)
        for text, tokens in ((question.problem, 4), (reasoning, 3 + 3 * SCENES)):
            ids = tokenizer.encode(text)
            assert (len(ids), tokenizer.decode(ids)) == (tokens, text)


@pytest.mark.parametrize("flags", [["--size", "33"], ["--hasty", "2"], ["--sft-films", "many"]])
def test_a_wrong_flag_is_one_line(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        tones.main(["--output", str(tmp_path), *flags])
    assert end.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and flags[0] in said[0]
