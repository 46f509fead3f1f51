"""What the page asks for networks that see pictures of their own, and what it makes of the answers."""

from types import SimpleNamespace

import pytest

from seecoder.app.guiding_fields import as_numbers, guiding_arguments, guiding_fields

GRADIO = SimpleNamespace(Textbox=lambda label: label)


def pipe(*, controlnet=None, adapter=None, kind=None):
    config = SimpleNamespace(encoder_hid_dim_type=kind)
    return SimpleNamespace(controlnet=controlnet, adapter=adapter, unet=SimpleNamespace(config=config))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, []),
        (
            {"controlnet": 1},
            [
                "control_image",
                "controlnet_conditioning_scale",
                "control_guidance_start",
                "control_guidance_end",
            ],
        ),
        ({"adapter": 1}, ["adapter_image", "adapter_conditioning_scale"]),
        ({"kind": "ip_image_proj"}, ["ip_adapter_image"]),
    ],
)
def test_only_networks_that_are_there_have_fields(parts, expected):
    assert list(guiding_fields(GRADIO, pipe(**parts), lambda label, **options: label)) == expected


def test_one_network_gets_its_values_alone_and_several_get_lists():
    one = {"control_image": ["a"], "controlnet_conditioning_scale": "0.5", "ip_adapter_image": "c", "text": "x"}
    assert guiding_arguments(one) == {**one, "control_image": "a", "controlnet_conditioning_scale": 0.5}
    two = {"adapter_image": ["a", "b"], "adapter_conditioning_scale": " 1  0.5 "}
    assert guiding_arguments(two) == {"adapter_image": ["a", "b"], "adapter_conditioning_scale": [1.0, 0.5]}


def test_a_word_that_is_no_number_is_named():
    assert as_numbers("weights", "") == []
    with pytest.raises(ValueError, match=r"`weights`='2 one' must be numbers with spaces between, such as 0.5 1"):
        as_numbers("weights", "2 one")
