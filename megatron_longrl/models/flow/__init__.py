"""The common parts of flow-matching models, whatever they draw."""
