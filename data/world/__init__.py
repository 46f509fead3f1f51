"""The world: procedural scenes with one object each, their renderer, and a reader that tells what pixels show."""
