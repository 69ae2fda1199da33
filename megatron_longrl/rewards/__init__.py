"""Rewards of a response, one file each."""
