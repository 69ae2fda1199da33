"""Weights of Hugging Face and PEFT checkpoints, imported and exported through the families' weight
mappings.
"""
