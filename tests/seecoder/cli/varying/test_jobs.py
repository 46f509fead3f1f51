"""What is varied, and with which seeds."""

from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from PIL import Image

from seecoder.cli.opening import OpenedPictures
from seecoder.cli.varying.jobs import make_jobs, seeds_of
from seecoder.encoder.context import save_context

OPENED = OpenedPictures(
    encoded={"a b.png": torch.zeros(3, 4, 4), "c.png": torch.ones(3, 4, 4)},
    thumbnails={"a b.png": Image.new("RGB", (4, 4)), "c.png": Image.new("RGB", (4, 4))},
)


def options(**changes):
    given = {"encoder": "e", "pictures": ["a b.png", "c.png"], "together": False, "weights": None, "concatenate": False}
    return Namespace(**{**given, "reference_mask": [], **changes})


def test_seeds_count_up_from_one():
    assert seeds_of([5], 3) == [5, 6, 7]
    assert seeds_of([5, 1], None) == [5, 1]
    assert seeds_of([5, 1], 2) == [5, 1]
    with pytest.raises(ValueError, match="contradicts the 2 seeds"):
        seeds_of([5, 1], 3)
    with pytest.raises(ValueError, match="`--seed`=9223372036854775808 must be a whole number from 0"):
        seeds_of([2**63 - 2], 3)


def test_every_picture_is_a_job():
    jobs = make_jobs(options(), OPENED)
    assert [(job.name, job.sources) for job in jobs] == [("a-b", ["a b.png"]), ("c", ["c.png"])]
    assert jobs[1].arguments["image"].images == [OPENED.encoded["c.png"]]
    mask = torch.ones(4, 4)
    masked = make_jobs(options(reference_mask=["m.png"]), replace(OPENED, masks={"m.png": mask}))
    assert [job.arguments["image"].masks[0] is mask for job in masked] == [True, True]


def test_pictures_together_are_one_job():
    (job,) = make_jobs(options(together=True, weights=[2.0, 1.0]), OPENED)
    assert (job.name, job.sources, len(job.thumbnails)) == ("together", ["a b.png", "c.png"], 2)
    assert job.arguments["image"].weights == [2.0, 1.0]


def test_nothing_to_vary_is_refused():
    with pytest.raises(ValueError, match="at least one PICTURE"):
        make_jobs(options(pictures=[]), OPENED)


def test_ready_contexts_are_jobs_and_go_with_nothing_that_has_to_be_encoded(tmp_path):
    file = str(tmp_path / "contexts.safetensors")
    save_context(file, torch.rand(2, 6, 32))
    given = {"encoder": file, "pictures": [], "negative": [], "region": []}
    jobs = make_jobs(options(**given), OPENED)
    assert [job.sources for job in jobs] == [[f"{file}[0]"], [f"{file}[1]"]]
    assert jobs[1].arguments["context"].shape == (1, 6, 32)
    for name, value in (("pictures", ["c.png"]), ("negative", ["c.png"]), ("region", [("m.png", "c.png")])):
        with pytest.raises(ValueError, match="go only with an encoder"):
            make_jobs(options(**{**given, name: value}), OPENED)
