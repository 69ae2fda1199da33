"""The VILA model of the tests of checkpoints."""

from __future__ import annotations

TINY = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 70,  # padded to 72, or to 80 with TP 2
    "make_vocab_size_divisible_by": 8,
    "max_position_embeddings": 256,
    "vision_image_size": 28,
    "vision_patch_size": 7,
    "vision_hidden_size": 16,
    "vision_num_layers": 3,
    "vision_num_attention_heads": 2,
    "vision_ffn_hidden_size": 24,
    "seq_length": 128,
    "train_iters": 10,
    "lr": 1e-3,
}
