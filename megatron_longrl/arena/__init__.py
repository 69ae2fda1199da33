"""Rendered games with known answers: moving cups, figures and tones, squares."""
