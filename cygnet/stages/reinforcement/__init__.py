"""Learning from what the model itself answers: rollouts, rewards, environments, GRPO, PPO."""
