"""Rollouts as they are recorded and replayed."""
