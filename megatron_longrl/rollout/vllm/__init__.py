"""vLLM as an engine within the trainer's processes."""
