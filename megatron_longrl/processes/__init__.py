"""Processes: how they end, and what ends with them."""
