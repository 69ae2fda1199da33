"""Training of flow-matching models: what their micro-batches hold, their forward step, their
losses."""
