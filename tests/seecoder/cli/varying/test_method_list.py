"""`--method list`: what it says is what the methods are."""

import dataclasses
import subprocess
import sys

import pytest

from seecoder.cli import main
from seecoder.cli.varying.method_list import check_methods, read_methods
from seecoder.sampling.composition import compose
from seecoder.sampling.methods.registry import METHODS, build_methods

FACTS = {facts.name: facts for facts in read_methods()}


def test_the_source_names_every_method_with_its_settings_and_defaults():
    assert FACTS.keys() == METHODS.keys()
    for name, facts in FACTS.items():
        fields = {entry.name: entry for entry in dataclasses.fields(METHODS[name])}
        told = {option: default for option, default, _ in facts.options}
        assert told.keys() == fields.keys() - {"regions"}
        assert all(text and facts.about for _, _, text in facts.options)
        for option, default in told.items():
            assert repr(fields[option].default) == default or default.startswith("field("), (name, option)


@pytest.mark.parametrize("first", sorted(METHODS))
@pytest.mark.parametrize("second", sorted(METHODS))
def test_what_goes_together_composes(first, second):
    try:
        compose([METHODS[first](), METHODS[second]()])
    except ValueError:
        composes = False
    else:
        composes = True
    assert FACTS[first].goes_with(FACTS[second]) == composes


def test_the_list_needs_no_other_option(capsys, base_folder):
    for command in ("vary", "panorama"):
        assert main([command, "--method", "list"]) == 0
        shown = capsys.readouterr().out
        assert "At 512x512 pixels, native size 512x512, 50 steps, guidance on." in shown
        assert all(f"\n  {name} " in shown for name in ("auto", "plain", *METHODS))
    given = ["--height", "32", "--width", "32", "--steps", "10", "--guidance", "1"]
    assert main(["vary", "--method", "list", "--base", str(base_folder), *given]) == 0
    shown = capsys.readouterr().out
    assert "At 32x32 pixels, native size 16x16, 10 steps, guidance 1." in shown
    assert "switch_at=(0.85,)" in shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("  plain")] == ["40"]


def test_the_list_needs_no_torch():
    code = "import sys; from seecoder.cli import main; main(['vary', '--method', 'list']); "
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0


@pytest.mark.parametrize(("names", "options"), [("magic", []), ("demofusion", [("no_such", 1)]), ("demofusion,x", [])])
def test_unknown_names_are_refused_as_the_methods_themselves_would(names, options):
    said = []
    for check in (check_methods, build_methods):
        with pytest.raises(ValueError, match=r"does not exist|is unknown") as error:
            check(names, options)
        said.append(str(error.value).replace("`--method`", "`method`"))
    assert said[0] == said[1]


def test_known_names_are_accepted():
    for names in (None, "Auto", "plain", "DemoFusion, multidiffusion"):
        check_methods(names, [])
    check_methods("demofusion,multidiffusion", [("multidiffusion.stride", 4), ("blur_sigma", 1)])
