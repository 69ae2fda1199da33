"""Advantages, policy losses, KL terms and filters: pure tensor functions on one process."""
