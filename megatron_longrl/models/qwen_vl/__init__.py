"""The common parts of the Qwen-VL families: towers over frames of any size, prompts and
positions."""
