"""Metrics, log lines, trackers, progress, plots and health checks of a run."""
