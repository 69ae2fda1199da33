"""The trainer's weights on their way to an engine."""
