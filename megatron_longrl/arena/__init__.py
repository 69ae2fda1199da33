"""Small video worlds whose answers can be checked: clips, questions and reasoning are generated."""
