"""Records of rollouts: what was asked, what came back."""
