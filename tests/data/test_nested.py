"""Nested dictionaries are flattened and compared by dotted names."""

from data.nested import differences, flat


def test_names_are_dotted_and_empty_parts_stay() -> None:
    assert flat({"a": {"b": 1, 2: {"c": None}}, "d": {}}) == {"a.b": 1, "a.2.c": None, "d": {}}


def test_what_was_added_changed_or_left_out_differs() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert list(differences(old, new)) == [("a.c", 2, 4), ("d", 3, None), ("e", None, 5)]
    assert not list(differences(old, old))
