"""The world: procedural scenes with one object each, their renderer, and a reader that tells from pixels what is in them."""
