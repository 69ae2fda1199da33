"""Process groups, sequence sharding, attention and log-probabilities over ranks, and errors that
all ranks agree on.
"""
