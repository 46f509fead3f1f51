"""Rules accept what they say, and a broken rule is one line with the name, the value and what is accepted."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from seecoder.checks import (
    FLAG,
    FUNCTION,
    Rule,
    check,
    choice,
    either,
    instance,
    number,
    optional,
    require,
    short_repr,
    some_of,
    whole,
)

NAN, INFINITY = float("nan"), float("inf")


@dataclass
class Settings:
    steps: object = 1
    scale: object = 0.5

    def __post_init__(self) -> None:
        check(self, steps=whole(1), scale=optional(number(0.0, 1.0)))


def test_check_names_the_field_the_value_and_the_class() -> None:
    with pytest.raises(ValueError, match=r"^`steps`=0 of Settings\(\) must be a whole number from 1 up\.$"):
        Settings(steps=0)
    with pytest.raises(ValueError, match=r"^`scale`=2 of Settings\(\) must be a number from 0 to 1, or None\.$"):
        Settings(scale=2)


def test_check_leaves_good_values_as_they_are() -> None:
    assert Settings(steps=3, scale=None) == Settings(3, None)


def test_require_names_an_owner_only_where_there_is_one() -> None:
    with pytest.raises(ValueError, match=r"^`eta`='1' must be a number\.$"):
        require("eta", "1", number())
    with pytest.raises(ValueError, match=r"^`eta`='1' of sample\(\) must be a number\.$"):
        require("eta", "1", number(), owner="sample")


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (number(), [0, -1.5, np.float32(2.0), np.int64(3)], [True, "1", None, NAN, INFINITY, torch.ones(1)]),
        (number(0.0, 1.0), [0, 1, 0.5], [-0.1, 1.1]),
        (number(0.0, above_minimum=True), [1e-9, 7], [0, 0.0, -1]),
        (whole(), [-3, 0, np.int64(3)], [True, 1.0, "1", None]),
        (whole(1), [1, 9], [0, -1]),
        (whole(0, 3), [0, 3], [-1, 4]),
        (choice("a", "b"), ["a", "b"], ["c", None, True, ["a"]]),
        (instance(str), ["", "a"], [None, 1]),
        (some_of(whole(1), "lengths", minimum=2, maximum=2), [(1, 2), [3, 4]], [(1,), (1, 2, 3), (0, 1), 1, "12"]),
        (some_of(whole(), "numbers"), [(), [1]], [None, {1}]),
        (either(FLAG, whole(1)), [True, False, 3], [0, "no"]),
        (optional(FLAG), [None, True], [0, "false"]),
        (FUNCTION, [len, lambda: None], [None, "len"]),
    ],
)
def test_rules_accept_what_they_say(rule: Rule, good: list, bad: list) -> None:
    assert [value for value in good if not rule.accepts(value)] == []
    assert [value for value in bad if rule.accepts(value)] == []


@pytest.mark.parametrize(
    ("rule", "accepted"),
    [
        (number(), "a number"),
        (number(maximum=2), "a number up to 2"),
        (number(0.0), "a number from 0 up"),
        (number(0.0, 1.0), "a number from 0 to 1"),
        (number(0.0, above_minimum=True), "a number above 0"),
        (number(0.0, 1.0, above_minimum=True), "a number above 0 and up to 1"),
        (whole(), "a whole number"),
        (whole(1), "a whole number from 1 up"),
        (whole(0, 3), "a whole number from 0 to 3"),
        (choice("a", "b", "c"), "'a', 'b' or 'c'"),
        (either(FLAG, whole(1)), "True or False or a whole number from 1 up"),
        (optional(choice("a")), "'a', or None"),
        (instance(dict), "a dict"),
    ],
)
def test_rules_say_what_they_accept(rule: Rule, accepted: str) -> None:
    assert rule.accepted == accepted


def test_long_values_are_shown_in_one_short_line() -> None:
    shown = short_repr(torch.zeros(100, 100))
    assert "\n" not in shown
    assert len(shown) == 80
    assert shown.endswith("…")
