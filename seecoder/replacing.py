"""Attributes that hold something else for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Give attributes of a module or an object other values inside the block.

    Afterwards they are what they were; what the owner did not hold itself, such as a method of its class, is its
    class's again.
    """
    before = {name: vars(owner)[name] for name in values if name in vars(owner)}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in values.keys() & vars(owner).keys():
            if name in before:
                setattr(owner, name, before[name])
            else:
                delattr(owner, name)
