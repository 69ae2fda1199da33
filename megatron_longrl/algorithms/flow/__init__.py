"""Reinforcement learning of flow-matching models: pure tensor functions on one process.

A sample at noise level sigma is (1 - sigma) clean + sigma noise. The network predicts the velocity
noise - clean. Sampling goes from sigma 1 to 0, so that the difference of two successive levels is
negative.
"""
