"""Advantages, policy losses and KL terms: pure tensor functions, no distributed code."""
