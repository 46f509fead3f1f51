"""YAML in which no key stands twice: its readers would take the last one without a word."""

from typing import Any

import yaml
from jsonargparse import get_loader

_load_yaml = get_loader("yaml")


def load_unique(text: str) -> Any:
    """Read YAML as jsonargparse does, and refuse a key that stands twice.

    Args:
        text: YAML; a key may be several in one, such as `run.folder`.

    Raises:
        ValueError: A key stands twice; with its name and both lines.
        YAMLError: It is no YAML.
    """
    lines: dict[str, int] = {}
    waiting, seen = [("", yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))], set[int]()
    for place, node in waiting:  # which grows meanwhile
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))  # anchors may let one node stand in many places
        for number, part in enumerate(node.value):
            key, value = part if isinstance(node, yaml.MappingNode) else (None, part)
            name = f"{place}{number if key is None else key.value}"
            waiting.append((f"{name}.", value))
            line = (key or value).start_mark.line + 1
            if name in lines:
                first, last = sorted((lines[name], line))
                raise ValueError(f"`{name}` stands twice, in lines {first} and {last}: one would be lost. Keep one.")
            lines[name] = line
    return _load_yaml(text)
