"""MR-SP's first stage: media are loaded and encoded by all ranks of a replica, and kept."""
