"""Videos: probing, choice of frames, decoding."""
