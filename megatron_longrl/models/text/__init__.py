"""Decoder-only language models: what the text families and the language models of others share."""
