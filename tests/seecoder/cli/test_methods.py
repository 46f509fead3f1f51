"""Methods by name, and their settings."""

import pytest

from seecoder.cli.methods import available_methods, build_methods


def test_every_method_of_the_package_has_its_name():
    from seecoder import sampling

    for name, method in available_methods().items():
        assert getattr(sampling, method.__name__) is method
        assert name == method.__name__.lower()


def test_settings_find_their_method():
    if "demofusion" not in available_methods():
        pytest.skip("the package does not offer DemoFusion yet")
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
    name = next(iter(available_methods()), None)
    if name is not None:
        with pytest.raises(ValueError, match=f"Settings are {name}: "):
            build_methods(name, [("no_such_setting", 1)])
