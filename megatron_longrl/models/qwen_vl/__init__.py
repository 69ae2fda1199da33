"""What the Qwen-VL families share: towers over frames of any size, prompts, positions."""
