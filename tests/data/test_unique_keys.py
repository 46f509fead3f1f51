import pytest
import yaml

from data.command import make_parser
from data.unique_keys import load_unique

DOUBLE = {
    "a: 1\nb: 2\na: 3\n": ("a", 1, 3),
    "a:\n  b: 1\n  c: 2\n  'b': 3\n": ("a.b", 2, 4),
    "a:\n- b: 1\n- b: 2\n  c: 3\n  b: 4\n": ("a.1.b", 3, 5),
    "run:\n  folder: x\nstage: {}\nrun.folder: y\n": ("run.folder", 2, 4),
    "base: &base {a: 1}\nmore:\n  <<: *base\n  b: 2\n  b: 3\n": ("more.b", 4, 5),
    '{"a": {"b": 1, "b": 2}}': ("a.b", 1, 1),
}


@pytest.mark.parametrize(("text", "found"), DOUBLE.items())
def test_a_key_that_stands_twice_is_refused_with_its_name_and_both_lines(text, found):
    name, first, last = found
    with pytest.raises(ValueError, match=rf"^`{name}` stands twice, in lines {first} and {last}: [^\n]* Keep one\.$"):
        load_unique(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: {b: 1}\nb: {b: 1}\n",
        "- a: 1\n- a: 1\n",
        "base: &base {a: 1, b: 2}\nmore:\n  <<: *base\n  b: 3\n",
        "one: &one [1, 2]\ntwo: *one\nthree: [*one, *one]\n",
        "12",
        "",
    ],
)
def test_other_yaml_is_what_it_was(text):
    assert load_unique(text) == yaml.safe_load(text)


def test_an_anchor_of_anchors_takes_no_time():
    rows = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 30)]
    with pytest.raises(ValueError, match="`a29` stands twice, in lines 30 and 31"):
        load_unique("\n".join(["a0: &a0 {b: 1}", *rows, "a29: 1"]))


def test_options_of_commands_are_read_so_too():
    parser = make_parser()
    parser.add_argument("--buckets", type=dict)
    assert parser.parse_args(["--buckets", "{group: 4, step: 8}"]).buckets == {"group": 4, "step": 8}
    with pytest.raises(Exception, match="`group` stands twice"):
        parser.parse_args(["--buckets", "{group: 4, group: 8}"])
