"""The reader: says from pixels alone what a picture of the world shows. Deterministic, nothing in it is learned."""

from data.world.reader.readings import agreement, read

__all__ = ["agreement", "read"]
