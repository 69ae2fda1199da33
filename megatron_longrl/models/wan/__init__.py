"""Wan 2.1 and 2.2 from text: a transformer that predicts velocities of the latents of films."""
