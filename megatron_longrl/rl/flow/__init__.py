"""Reinforcement learning of flow-matching models: sampling by the trainer's own weights, rewards of
pixels, updates on the steps of sampling."""
