"""The objective, the optimizer, checkpoints and the training loop."""
