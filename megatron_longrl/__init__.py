"""Reinforcement learning of vision-language models on long videos, on Megatron-Core."""

import os

__version__ = "0.1.0"

# Read by torch at its first allocation, hence here. Large tensors on a CPU then get huge pages: a
# pass over a fresh one takes 0.4 of the time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
