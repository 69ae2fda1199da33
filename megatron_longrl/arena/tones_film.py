"""Films of coloured figures and tones, and questions that need both.

A film is six scenes of half a second each. Every colour fills two of them, and in some of them a
tone sounds. Given the pictures alone, all three answers of a question are equally likely, and given
the sound alone, too: what counts is which colour and which tone come together.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

COLOURS = ("red", "green", "blue")
PITCHES = ("low", "high")
SILENT = "silent"
SCENES = 2 * len(COLOURS)
UNKNOWN = "unknown"
CHOICES = 3
"""Answers that every question lets choose from."""
HELDOUT_ONE_IN = 4
"""One in this many contents is used only in sets for measuring."""


@dataclass(frozen=True)
class Film:
    """The course of one film.

    Attributes:
        colours: numbers in ``COLOURS``, of each scene.
        tones: per scene a number in ``PITCHES``, or None where no tone sounds.
        style: seed of what decides no answer: figures, places, shades, exact pitch and time.
    """

    colours: tuple[int, ...]
    tones: tuple[int | None, ...]
    style: int

    @property
    def is_heldout(self) -> bool:
        """Whether the scenes of this film are set aside for measuring."""
        content = repr((self.colours, self.tones)).encode()
        return zlib.crc32(content) % HELDOUT_ONE_IN == 0

    def beginning(self, scenes: int) -> Film:
        """The film up to, and with, its scene of this number, counted from one."""
        return replace(self, colours=self.colours[:scenes], tones=self.tones[:scenes])

    def sounding(self, pitch: int | None = None) -> list[int]:
        """Scenes with a tone, in order; with a pitch, those with such a tone."""
        return [
            scene
            for scene, tone in enumerate(self.tones)
            if tone is not None and (pitch is None or tone == pitch)
        ]


@dataclass(frozen=True)
class Question:
    """A question about a film.

    Attributes:
        kind: ``moment``, ``pitch``, ``count`` or ``order``.
        text: the question itself.
        choices: its answers.
        answer: what is right of a film, as a number in ``choices``; None where the question
            cannot be asked of it.
        pitches: of the tones of a film, as many as it has; None for any.
        about: what of a film it asks for, before an answer that is noted down.
    """

    kind: str
    text: str
    choices: tuple[str, ...]
    answer: Callable[[Film], int | None]
    pitches: tuple[int | None, ...]
    about: str = ""

    @property
    def problem(self) -> str:
        """The question with its choices, one a line."""
        lines = [f"{letter}. {choice}" for letter, choice in zip("ABC", self.choices, strict=True)]
        return "\n".join([self.text, *lines])

    def note(self, choice: int | None) -> str:
        """An answer as it is noted down while a film goes on; None while there is none."""
        return f"{self.about} {UNKNOWN if choice is None else self.choices[choice]}".strip()


def _colour_of_pitch(pitch: int) -> Callable[[Film], int | None]:
    def answer(film: Film) -> int | None:
        scenes = film.sounding(pitch)
        return film.colours[scenes[0]] if len(scenes) == 1 else None

    return answer


def _colour_in_order(place: int) -> Callable[[Film], int | None]:
    def answer(film: Film) -> int | None:
        scenes = film.sounding()
        return film.colours[scenes[place]] if scenes else None

    return answer


def _colour_of_only(film: Film) -> int | None:
    scenes = film.sounding()
    return film.colours[scenes[0]] if len(scenes) == 1 else None


def _tones_in(colour: int) -> Callable[[Film], int | None]:
    return lambda film: sum(film.colours[scene] == colour for scene in film.sounding())


_TWO, _THREE = (None, None), (None, None, None)
QUESTIONS = (
    Question("moment", "Which colour is there at the tone?", COLOURS, _colour_of_only, (None,)),
    *(
        Question(
            "pitch",
            f"Which colour is there at the {PITCHES[pitch]} tone?",
            COLOURS,
            _colour_of_pitch(pitch),
            (0, 1),
            PITCHES[pitch],
        )
        for pitch in range(len(PITCHES))
    ),
    *(
        Question(
            "count",
            f"How many tones sound while there is {name}?",
            ("none", "one", "two"),
            _tones_in(colour),
            _THREE,
            name,
        )
        for colour, name in enumerate(COLOURS)
    ),
    *(
        Question(
            "order",
            f"Which colour is there at the {name} tone?",
            COLOURS,
            _colour_in_order(place),
            _TWO,
            name,
        )
        for name, place in (("first", 0), ("last", -1))
    ),
)
KINDS = tuple(dict.fromkeys(question.kind for question in QUESTIONS))


def draw_question(rng: np.random.Generator) -> Question:
    """A question, each kind as often as the others."""
    kind = KINDS[rng.integers(len(KINDS))]
    of_kind = [question for question in QUESTIONS if question.kind == kind]
    return of_kind[rng.integers(len(of_kind))]


def draw_film(question: Question, is_heldout: bool, rng: np.random.Generator) -> Film:
    """A film of which the question can be asked: its pictures first, then its answer, and last
    tones that make it right."""
    while True:
        scenes = rng.permutation(np.repeat(np.arange(len(COLOURS)), SCENES // len(COLOURS)))
        still = Film(tuple(int(colour) for colour in scenes), (None,) * SCENES, _style(rng))
        pitches = [
            int(rng.integers(len(PITCHES))) if pitch is None else pitch
            for pitch in question.pitches
        ]
        film = _with_tones(still, pitches, question, int(rng.integers(CHOICES)), rng)
        if film is not None and film.is_heldout == is_heldout:
            return film


def move_tones(film: Film, question: Question, rng: np.random.Generator) -> Film | None:
    """The same film with its tones in other scenes, so that another answer is right; None where no
    such film that is set aside for measuring is found."""
    pitches = [tone for tone in film.tones if tone is not None]
    right = question.answer(film)
    others = [choice for choice in range(CHOICES) if choice != right]
    for _ in range(_TRIES):
        found = _with_tones(film, pitches, question, int(rng.choice(others)), rng)
        if found is not None and found.is_heldout:
            return found
    return None


_TRIES = 50


def _style(rng: np.random.Generator) -> int:
    return int(rng.integers(2**62))


def _with_tones(
    film: Film, pitches: Sequence[int], question: Question, answer: int, rng: np.random.Generator
) -> Film | None:
    """The film with these tones at random times that make the answer right; None where none are
    found."""
    for _ in range(_TRIES):
        tones: list[int | None] = [None] * SCENES
        places = rng.choice(SCENES, len(pitches), replace=False)
        for scene, pitch in zip(places, pitches, strict=True):
            tones[scene] = pitch
        found = replace(film, tones=tuple(tones))
        if question.answer(found) == answer:
            return found
    return None
