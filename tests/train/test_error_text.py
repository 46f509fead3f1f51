"""Errors are one line that names the cause; the parser's account of its attempts is left out."""

import pytest

from train.error_text import error_sentence

UNION = """{head}Does not validate against any of the Union subtypes
  Subtypes: [<class 'train.sources.stage_data.StageData'>, <class 'NoneType'>]
  Errors:
    - {error}
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._namespace.Namespace'>
  Given value: Namespace(shards='https://me:secret@host/shards?token=abcd', image_size=64)"""
PROBLEM = "Problem with given class_path 'train.sources.ShardPictures':\n        "
SET = "Problem with given class_path 'train.sources.data_sets.DataSet':\n        "
REPEATS = "Parser key \"repeats\":\n          Expected a <class 'int'>. Got value: 0.5"
KEY = 'Parser key "data":\n  '


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("`a`=1 must be 2.", "`a`=1 must be 2."),
        (
            UNION.format(
                head="", error="`nowhere` does not exist. Give a folder of shards, made by `python -m data.build`."
            ),
            "`nowhere` does not exist. Give a folder of shards, made by `python -m data.build`.",
        ),
        (
            UNION.format(head=KEY, error=f"{PROBLEM}Option 'shard' is not accepted"),
            "`train.sources.ShardPictures` has no option `shard`; did you mean `shards`?",
        ),
        (
            UNION.format(
                head=KEY,
                error=f"{PROBLEM}Parser key \"crop\": Expected a typing.Literal['center', 'random']. Got value: maybe",
            ),
            "`data.crop`=maybe must be Literal['center', 'random'].",
        ),
        (
            UNION.format(head=KEY, error="Problem with given class_path 'train.sources.X':\n        no attribute 'X'"),
            "`data`=train.sources.X: no attribute 'X'",
        ),
        (
            UNION.format(
                head='Parser key "shards":\n  ',
                error=f"Expected a <class 'str'>\n    - {SET}Option 'weight' is not accepted",
            ),
            "`train.sources.data_sets.DataSet` has no option `weight`; it has shards, repeats, crop, flip.",
        ),
        (
            UNION.format(head=KEY, error=f"Expected a <class 'str'>\n    - {SET}{REPEATS}"),
            "`data.repeats`=0.5 must be int.",
        ),
        (
            "Parser key \"run.callbacks\":\n  Problem with given class_path 'mine.Every':\n    No module named 'mine'",
            "`run.callbacks`=mine.Every: No module named 'mine'",
        ),
        (
            "Subcommand 'fit' does not accept option 'run.max_step'",
            "`fit` has no option `run.max_step`; did you mean `max_steps`?",
        ),
        ("Subcommand 'fit' does not accept option 'trainer'", "`fit` has no option `trainer`."),
        (
            UNION.format(head=KEY, error=f"{PROBLEM}Group 'optimizer' does not accept option 'warm_up_steps'"),
            "`optimizer` has no option `warm_up_steps`; did you mean `warmup_steps`?",
        ),
        (
            UNION.format(
                head=KEY,
                error="Not a valid subclass of StageData\n      Subclass types expect one of:\n      - a class path",
            ),
            "`data` must have `class_path` and `init_args`, and nothing beside. Look how its lines are indented.",
        ),
        (
            "Parser key \"run.max_steps\": Expected a <class 'int'>. Got value: many",
            "`run.max_steps`=many must be int.",
        ),
        ("Parser key \"config\": File does not exist: '/x.yaml'", "`config`: File does not exist: '/x.yaml'"),
        (
            "`https://me:secret@host/a?token=abcd` is a URL: give a `cache`.",
            "`https://host/a` is a URL: give a `cache`.",
        ),
    ],
)
def test_the_cause_is_said_in_one_line(text, said):
    assert error_sentence(ValueError(text)) == said


def test_an_unknown_option_with_nothing_near_is_answered_with_all_of_them():
    said = error_sentence(ValueError(UNION.format(head=KEY, error=f"{PROBLEM}Option 'zzz' is not accepted")))
    assert said.startswith("`train.sources.ShardPictures` has no option `zzz`; it has ")
    assert "shards, " in said
    assert said.endswith(".")


def test_the_traceback_of_a_reading_process_is_left_out():
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\nValueError: "
    )
    text += "gone"
    assert error_sentence(ValueError(text)) == "gone"
