"""A benchmark of MR-SP: RL steps of the published method, of its predecessors, and of this package.

``tools/benchmark_mrsp.py`` runs every variant on the same samples and weights, each point in new
processes.
"""
