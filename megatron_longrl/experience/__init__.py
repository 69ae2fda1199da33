"""Records of rollouts: the requests and inputs of an engine, its rollouts, and their rewards."""
