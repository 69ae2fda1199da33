"""vLLM as a server beside the trainer."""
