"""Model families on megatron-core; nothing here knows about RL."""
