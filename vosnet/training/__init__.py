"""The training engine: from a recipe to checkpoints, without knowing any objective by name."""
