"""What a run tells: metrics, log lines, trackers, plots, health checks."""
