"""Healthy files are healthy, damage is damage, and a case is a function of its numbers alone."""

import numpy as np
import pytest

from seecoder.images.gate import load_image
from tests.fuzzing.damaged_images import DAMAGES, FORMATS, make_case, seeds, size_fields, split


@pytest.mark.parametrize("format", FORMATS)
def test_healthy_files_load_and_can_be_cut_into_parts(format):
    for data in seeds(format):
        assert load_image(data).shape[0] == 3
        assert size_fields(data, format)
        parts = split(data, format)
        assert b"".join(parts) == data
        assert len(parts) > 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_case_is_a_function_of_its_numbers(format):
    cases = [make_case(format, 3, case) for case in range(20)]
    assert cases == [make_case(format, 3, case) for case in range(20)]
    assert len(set(cases)) > 15
    assert make_case(format, 4, 0) != cases[0]


@pytest.mark.parametrize("format", FORMATS)
def test_every_kind_of_damage_changes_files(format):
    generator = np.random.default_rng(0)
    for damage in DAMAGES:
        assert any(damage(data, format, generator) != data for data in seeds(format) for _ in range(10)), damage
