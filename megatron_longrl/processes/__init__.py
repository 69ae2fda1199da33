"""The end of processes: signals that ask a run to save, and processes that end with the one that
started them."""
