"""Rendered games with known answers: moving cups."""
