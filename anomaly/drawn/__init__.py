"""The photographs that the project draws: the demo, and what its own checkpoint is trained on."""
