"""The common parts of videos and images: frames, their size and their preprocessing."""
