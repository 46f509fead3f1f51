"""What the settings of the methods accept: a value that means nothing is refused where it is given, in one line.

Types are looked at, too: the text "false" is true to Python, and a setting that is not what it seems changes a picture
without a word.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

_LONGEST = 80  # characters of a value that an error shows


@dataclass(frozen=True)
class Rule:
    """Which values a setting accepts, and how to say so.

    Attributes:
        accepts: Whether a value is one of them.
        accepted: Ends the sentence "… must be …".
    """

    accepts: Callable[[Any], bool]
    accepted: str


def check(settings: Any, **rules: Rule) -> None:
    """Check every field of a method's settings.

    Args:
        settings: A dataclass.
        rules: One for each of its fields.

    Raises:
        ValueError: A field has a value that its rule does not accept.
    """
    for field in fields(settings):
        rule, value = rules[field.name], getattr(settings, field.name)
        if not rule.accepts(value):
            name = type(settings).__name__
            raise ValueError(f"`{field.name}`={shown(value)} of {name}() must be {rule.accepted}.")


def shown(value: Any) -> str:
    """A value in one line that is not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def number(least: float = -math.inf, most: float = math.inf, *, above: bool = False) -> Rule:
    """A finite number in a range; with `above` not its least."""

    def accepts(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            return False
        return least <= float(value) <= most and not (above and value == least)

    low = f"above {least:g}" if above else f"from {least:g}"
    return Rule(accepts, f"a number {low} {'up' if most == math.inf else f'to {most:g}'}")


def whole(least: int | None = None) -> Rule:
    """A whole number."""

    def accepts(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and (least is None or int(value) >= least)

    return Rule(accepts, "a whole number" if least is None else f"a whole number from {least} up")


def choice(*values: str) -> Rule:
    """One of a few words."""
    return Rule(lambda value: isinstance(value, str) and value in values, _or([repr(value) for value in values]))


def some_of(rule: Rule, what: str, *, least: int = 0) -> Rule:
    """A list or tuple of values that a rule accepts."""

    def accepts(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) >= least and all(map(rule.accepts, value))

    return Rule(accepts, what)


def either(*rules: Rule) -> Rule:
    """What any of several rules accepts."""
    return Rule(lambda value: any(rule.accepts(value) for rule in rules), _or([rule.accepted for rule in rules]))


def optional(rule: Rule) -> Rule:
    """What a rule accepts, or None for what the method itself decides."""
    return Rule(lambda value: value is None or rule.accepts(value), f"{rule.accepted}, or None")


def _or(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _is_factors(value: Any) -> bool:
    def is_factor(factor: Any) -> bool:
        is_pair = isinstance(factor, list | tuple) and len(factor) == 2
        return all(number(1.0).accepts(entry) for entry in factor) if is_pair else number(1.0).accepts(factor)

    return isinstance(value, Mapping) and all(isinstance(key, str) and is_factor(value[key]) for key in value)


FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
SHARE = Rule(number(0.0, 1.0).accepts, "a share of the trajectory, 0 to 1")
_PAIR = some_of(whole(1), "a pair (rows, columns)", least=2)
LENGTHS = either(whole(1), Rule(lambda value: _PAIR.accepts(value) and len(value) == 2, "a pair of them"))
FUNCTION = Rule(callable, "a function")
SPACE = choice("latents", "pixels")
PATTERNS = Rule(
    lambda value: isinstance(value, str) or some_of(Rule(lambda entry: isinstance(entry, str), ""), "").accepts(value),
    "a pattern or a list of patterns, such as 'level.1' or ('mid', 'up.0')",
)
FACTORS = Rule(_is_factors, "a mapping of patterns to factors from 1 up, or pairs of them, such as {'level.1': 2.0}")
