"""Records of rollouts: what an engine is asked and given, what it generates, and its rewards."""
