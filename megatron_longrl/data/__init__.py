"""Rows of a data set, tokenizers, prompts and packed sequences of tokens."""
