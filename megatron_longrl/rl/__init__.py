"""The RL trainer: rollouts are collected, scored and turned into advantages, losses and updates."""
