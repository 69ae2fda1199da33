"""Media embeddings that are kept: in shared memory and on disk."""
