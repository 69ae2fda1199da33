"""VILA: SigLIP tower, downsampling projector, Qwen2 language model."""
