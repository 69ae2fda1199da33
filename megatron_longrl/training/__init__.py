"""The trained model, Megatron's training step, micro-batches, the training loop and supervised
fine-tuning.
"""
