"""Records of rollouts: sampling settings, responses, and what an engine was given."""
