"""Print the part of scripts/requirements.lock that some extras need, for `pip install --require-hashes -r`.

    python scripts/locked_requirements.py train,onnx
    python scripts/locked_requirements.py build

What the library itself and the development group need is always among it; `build` stands for what packages that come
as sources are built with, and nothing else. Runs before anything is installed, so it uses the standard library alone.
"""

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "scripts" / "requirements.lock"


@dataclass(frozen=True)
class Entry:
    """One package of the lock.

    Attributes:
        text: Its lines: version, marker and hashes.
        via: Names of those that need it.
    """

    text: str
    via: frozenset[str]


def plain(name: str) -> str:
    """The one spelling of a package's name, without version or extras."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", name.strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def read_lock(text: str) -> dict[str, Entry]:
    """Entries by name."""
    entries = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text)[1:]:  # before the first lies what is said of the file
        lines, _, via = block.partition("# via ")
        entries[plain(block)] = Entry(lines.rstrip(), frozenset(plain(one) for one in via.split(",")))
    return entries


def direct(project: dict[str, Any], extras: list[str]) -> set[str]:
    """Names of what pyproject.toml itself asks for.

    Raises:
        ValueError: There is no such extra.
    """
    if extras == ["build"]:
        return {plain(requirement) for requirement in project["build-system"]["requires"]}
    known = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for extra in extras:
        if extra not in known:
            raise ValueError(f"`EXTRAS`: there is no `{extra}`; {', '.join(sorted(known))} are known.")
        wanted += known[extra]
    own = project["project"]["name"]
    names = {plain(requirement) for requirement in wanted if plain(requirement) != own}
    for requirement in wanted:
        if plain(requirement) == own:  # an extra that is made of others
            names |= direct(project, re.findall(r"[\w-]+", requirement.partition("[")[2]))
    return names


def needed(entries: dict[str, Entry], names: set[str]) -> set[str]:
    """These, what they need, what that needs, and so on."""
    found = set(names)
    while more := {name for name, entry in entries.items() if entry.via & found} - found:
        found |= more
    return found


def select(extras: list[str]) -> str:
    """Lines of the lock for some extras.

    Raises:
        ValueError: There is no such extra, or the lock was not made again after pyproject.toml had changed.
    """
    entries = read_lock(LOCK.read_text(encoding="utf-8"))
    names = direct(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")), extras)
    if names - set(entries):
        missing = ", ".join(sorted(names - set(entries)))
        raise ValueError(f"scripts/requirements.lock lacks {missing}: make it again as its first lines say.")
    return "".join(entries[name].text + "\n" for name in sorted(needed(entries, names)))


def main(arguments: list[str]) -> int:
    """Print them; 2 for bad input."""
    try:
        sys.stdout.write(select([extra for extra in "".join(arguments).split(",") if extra]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
