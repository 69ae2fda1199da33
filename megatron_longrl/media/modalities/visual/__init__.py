"""What videos and images have in common: frames, their size and their preprocessing."""
