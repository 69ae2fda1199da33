"""The RL loop: rollouts, rewards, advantages, updates."""
