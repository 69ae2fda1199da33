"""A reward of your own: ``--reward-function tests/extensions/reward/letters.py:vowels``."""

from __future__ import annotations


def vowels(response: str) -> dict[str, float]:
    """The part of a response's characters that are vowels, and how many characters it has."""
    count = sum(character in "aeiou" for character in response.lower())
    return {"score": count / max(len(response), 1), "characters": float(len(response))}
