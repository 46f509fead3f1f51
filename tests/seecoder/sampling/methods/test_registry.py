"""Methods by name, and their settings."""

import re

import pytest

from seecoder import sampling
from seecoder.cli.options import key_value
from seecoder.sampling import DemoFusion, MultiDiffusion, ScaleCrafter
from seecoder.sampling.methods.registry import METHODS, build_methods, named_methods


def test_every_method_of_the_package_has_its_name():
    public = [getattr(sampling, name) for name in sampling.__all__]
    methods = [entry for entry in public if isinstance(entry, type) and issubclass(entry, sampling.Method)]
    assert {method.__name__.lower(): method for method in methods if method is not sampling.Method} == METHODS


def test_settings_find_their_method():
    built = build_methods("DemoFusion, multidiffusion", [("blur_sigma", 0.5), ("multidiffusion.stride", 4)])
    assert built is not None
    assert built[0].blur_sigma == 0.5
    assert built[1].stride == 4
    with pytest.raises(ValueError, match=r"write demofusion\.stride="):
        build_methods("demofusion,multidiffusion", [("stride", 4)])


def test_unknown_names_are_answered_with_the_known():
    assert build_methods(None) is None
    with pytest.raises(ValueError, match="choose from"):
        build_methods("magic")
    with pytest.raises(ValueError, match="Settings are demofusion: "):
        build_methods("demofusion", [("no_such_setting", 1)])


def test_names_and_presets_become_methods_by_the_size():
    given = ((16, 16), (8, 8), 50)
    assert named_methods("DemoFusion", *given) == [DemoFusion()]
    assert named_methods("multidiffusion, demofusion", *given) == [MultiDiffusion(), DemoFusion()]
    assert named_methods(["demofusion", ScaleCrafter()], *given) == [DemoFusion(), ScaleCrafter()]
    assert [type(method).__name__ for method in named_methods("auto", *given)] == ["ScaleCrafter", "RectifiedHR"]
    assert named_methods("balanced", *given) == [ScaleCrafter()]
    assert named_methods("auto", (8, 8), (8, 8), 50) == named_methods("plain", *given) == []
    assert named_methods(None, *given) is None
    for unknown in ("demofuson", ["magic"]):
        with pytest.raises(
            ValueError, match="does not exist; choose from plain, auto, fast, balanced, best, demofusion,"
        ):
            named_methods(unknown, *given)


@pytest.mark.parametrize("text", ["false", "FALSE", "False", "no", "No"])
def test_switches_are_read_in_any_case(text):
    (method,) = build_methods("demofusion", [key_value(f"windows_see_context={text}")]) or []
    assert method.windows_see_context is False
    yes = {"false": "true", "FALSE": "TRUE", "False": "True", "no": "yes", "No": "Yes"}[text]
    (method,) = build_methods("syncdiffusion", [key_value(f"clamp={yes}")]) or []
    assert method.clamp is True


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("demofusion.stride=(4, 8)", (4, 8)),
        ("demofusion.cosine_scale_1=2", 2),
        ("demofusion.blur_kernel=paper", "paper"),
        ("demofusion.num_phases=none", None),
        ("rectifiedhr.switch_at=(0.5,)", (0.5,)),
        ("rectifiedhr.switch_at=[0.5, 0.6]", [0.5, 0.6]),
        ("scalecrafter.disperse=level.2", "level.2"),
        ("scalecrafter.dilation={'level.1': 2}", {"level.1": 2}),
        ("syncdiffusion.anchor=first", "first"),
        ("syncdiffusion.anchor=-1", -1),
    ],
)
def test_values_of_every_kind_are_read(option, value):
    name, _, setting = option.partition("=")[0].partition(".")
    (method,) = build_methods(name, [key_value(option)]) or []
    assert getattr(method, setting) == value


@pytest.mark.parametrize(
    ("method", "option", "line"),
    [
        ("demofusion", "jitter=maybe", "`jitter`='maybe' of DemoFusion() must be True or False"),
        (
            "demofusion",
            "skip_dead_steps=2",
            "`skip_dead_steps`=2 of DemoFusion() must be True or False or an influence",
        ),
        ("multidiffusion", "jitter=yes", "`jitter`=True of MultiDiffusion() must be a whole number from 0 up"),
        ("multidiffusion", "stride=half", "`stride`='half' of MultiDiffusion() must be a whole number from 1 up"),
        ("scalecrafter", "dilation=2", "`dilation`=2 of ScaleCrafter() must be a mapping of patterns to factors"),
        ("rectifiedhr", "switch_at=0.8", "`switch_at`=0.8 of RectifiedHR() must be one or more fractions"),
        ("syncdiffusion", "anchor=last", "`anchor`='last' of SyncDiffusion() must be 'middle' or 'first' or a whole"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(method, option, line):
    with pytest.raises(ValueError, match=re.escape(f"`--method-option`: {line}")):
        build_methods(method, [key_value(option)])
