"""The photographs that the project draws: the demo, and what the embedded checkpoint is trained on."""
