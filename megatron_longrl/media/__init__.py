"""MR-SP's first stage: media are decoded and encoded by all ranks of a replica, and their
embeddings are kept.
"""
