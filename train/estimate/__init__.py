"""What a training will take: memory, time, and what limits it, from counted costs."""
