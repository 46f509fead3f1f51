"""How values are checked: once, by the class that holds them, in its `__post_init__` or `__init__`.

A rule says which values are accepted, and how to say so. Rules are values, and go together:

    check(self, steps=whole(1), scale=optional(number(0.0, 1.0)), kind=choice("plain", "fast"), quiet=FLAG)

A value that breaks its rule is refused in one line: "`steps`=0 of Settings() must be a whole number from 1 up." Types
are looked at, too: the text "false" is true to Python, and a setting that is not what it seems changes a result without
a word.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

_MAX_SHOWN = 80  # characters of a value that an error shows


@dataclass(frozen=True)
class Rule:
    """Which values are accepted.

    Attributes:
        accepts: Whether a value is one of them.
        accepted: The values in words; ends the sentence "… must be …".
    """

    accepts: Callable[[Any], bool]
    accepted: str


def check(holder: object, **rules: Rule) -> None:
    """Check attributes of an object.

    Args:
        holder: The object; errors name its class.
        rules: The name of each attribute that is checked, and its rule.

    Raises:
        ValueError: An attribute has a value that its rule does not accept.
    """
    for name, rule in rules.items():
        require(name, getattr(holder, name), rule, owner=type(holder).__name__)


def require(name: str, value: object, rule: Rule, *, owner: str = "") -> None:
    """Check one value.

    Args:
        name: What the value is called where the user gives it.
        value: The value.
        rule: The rule that it has to keep.
        owner: The class or function that takes the value, for the error; empty if the name says enough.

    Raises:
        ValueError: The rule does not accept the value.
    """
    if not rule.accepts(value):
        place = f" of {owner}()" if owner else ""
        raise ValueError(f"`{name}`={short_repr(value)}{place} must be {rule.accepted}.")


def short_repr(value: object) -> str:
    """The `repr` of a value in one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def number(minimum: float = -math.inf, maximum: float = math.inf, *, above_minimum: bool = False) -> Rule:
    """A finite number in a range that holds its ends; with `above_minimum` the lower end is left out."""

    def accepts(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            return False
        return minimum <= float(value) <= maximum and not (above_minimum and value == minimum)

    return Rule(accepts, f"a number{_range(minimum, maximum, above_minimum)}")


def whole(minimum: float = -math.inf, maximum: float = math.inf) -> Rule:
    """A whole number in a range that holds its ends."""

    def accepts(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and minimum <= int(value) <= maximum

    return Rule(accepts, f"a whole number{_range(minimum, maximum)}")


def choice(*values: str) -> Rule:
    """One of a few words."""
    return Rule(lambda value: isinstance(value, str) and value in values, _joined([repr(value) for value in values]))


def instance(kind: type) -> Rule:
    """An object of a class."""
    return Rule(lambda value: isinstance(value, kind), f"a {kind.__name__}")


def some_of(rule: Rule, accepted: str, *, minimum: int = 0, maximum: float = math.inf, falling: bool = False) -> Rule:
    """A list or tuple of values that a rule accepts.

    Args:
        rule: The rule for every entry.
        accepted: The lists in words.
        minimum: Fewest entries.
        maximum: Most entries.
        falling: Whether every entry has to be smaller than the one before.
    """

    def accepts(value: Any) -> bool:
        is_list = isinstance(value, list | tuple)
        are_good = is_list and minimum <= len(value) <= maximum and all(map(rule.accepts, value))
        return are_good and not (falling and any(first <= second for first, second in pairwise(value)))

    return Rule(accepts, accepted)


def either(*rules: Rule) -> Rule:
    """What any of several rules accepts."""
    return Rule(lambda value: any(rule.accepts(value) for rule in rules), _joined([rule.accepted for rule in rules]))


def optional(rule: Rule) -> Rule:
    """What a rule accepts, or None for "not given"."""
    return Rule(lambda value: value is None or rule.accepts(value), f"{rule.accepted}, or None")


FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
FUNCTION = Rule(callable, "a function")


def _range(minimum: float, maximum: float, above_minimum: bool = False) -> str:
    """A range in words, such as " from 0 to 1"; empty if it has no ends."""
    if minimum == -math.inf:
        return "" if maximum == math.inf else f" up to {maximum:g}"
    low = f" above {minimum:g}" if above_minimum else f" from {minimum:g}"
    if maximum == math.inf:
        return low if above_minimum else f"{low} up"
    return f"{low} to {maximum:g}" if not above_minimum else f"{low} and up to {maximum:g}"


def _joined(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b or c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
