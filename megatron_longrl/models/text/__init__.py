"""Decoder-only language models: the common parts of the text families and of the language models of
others."""
