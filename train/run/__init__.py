"""What surrounds a training: trainer, checkpoints, records, guards, the end."""
