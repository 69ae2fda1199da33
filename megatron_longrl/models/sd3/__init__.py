"""Stable Diffusion 3 and 3.5: a transformer of two streams, pictures and text, that predicts
velocities."""
