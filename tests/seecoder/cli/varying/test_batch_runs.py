"""Variations go through the network together, and are what they are alone."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from seecoder.cli import main
from seecoder.cli.varying.batch_runs import Batches
from seecoder.cli.varying.jobs import Job, Variation
from seecoder.images.gate import load_image

LARGE = ["--height", "32", "--width", "32", "--guidance", "3", "--sheet", ""]


class FakePipeline:
    """Counts calls; fails for batches that hold the seed 13, and makes pictures whose grey level is the seed."""

    def __init__(self):
        self.calls, self.encoded = [], []

    def set_progress_bar_config(self, **options):
        pass

    def context_arguments(self, image, image_size):
        self.encoded.append(image)
        return {"context": torch.full((1, 2, 4), float(image))}

    def __call__(self, *, context, generator, callback_on_stage_end, **given):
        seeds = [entry.initial_seed() for entry in generator]
        self.calls.append((context[:, 0, 0].tolist(), seeds))
        if 13 in seeds:
            raise RuntimeError("the denoised latents contain NaN.")
        return SimpleNamespace(images=[Image.new("RGB", (4, 4), (seed,) * 3) for seed in seeds], notes=["a note"])


def variations(tmp_path, seeds):
    jobs = [Job(str(place), {"image": place}, [str(place)]) for place in (1, 2)]
    return [Variation(job, seed, tmp_path / f"{job.name}-{seed}.png") for job in jobs for seed in seeds]


def test_contexts_and_seeds_are_batched_together_and_each_picture_is_encoded_once(tmp_path):
    pipe = FakePipeline()
    made = list(Batches(pipe, {}, 4, previews=False).run(variations(tmp_path, [5, 6, 7])))
    assert pipe.calls == [([1, 1, 1, 2], [5, 6, 7, 5]), ([2, 2], [6, 7])]
    assert pipe.encoded == [1, 2]
    assert [(variation.job.name, variation.seed, notes) for variation, notes in made] == [
        (name, seed, ["a note"]) for name in "12" for seed in (5, 6, 7)
    ]
    assert all(Image.open(variation.file).getpixel((0, 0)) == (variation.seed,) * 3 for variation, _ in made)


def test_each_picture_is_written_before_the_next_batch_begins(tmp_path):
    pipe = FakePipeline()
    run = Batches(pipe, {}, 2, previews=False).run(variations(tmp_path, [5, 6, 7]))
    next(run)
    assert (tmp_path / "1-5.png").is_file()
    assert len(pipe.calls) == 1


def test_a_picture_that_fails_does_not_cost_those_of_its_batch(tmp_path, capsys):
    run = Batches(FakePipeline(), {}, 8, previews=False).run(variations(tmp_path, [5, 6, 13]))
    assert [next(run)[0].seed, next(run)[0].seed] == [5, 6]
    with pytest.raises(RuntimeError, match="NaN"):
        next(run)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["1-5.png", "1-6.png"]
    assert "made one by one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "method", [[], ["--method", "demofusion"], ["--method", "multidiffusion", "--method-option", "jitter=1"]]
)
def test_a_picture_is_the_same_alone_and_in_a_batch(method, pictures, networks, tmp_path):
    """Two pictures and three seeds, with previews, at once and one by one: equal but for the rounding of one level."""
    command = ["vary", *pictures, *networks, *LARGE, *method, "--count", "3", "--previews"]
    for name, batch in (("alone", "1"), ("together", "6"), ("uneven", "4")):
        assert main([*command, "--batch", batch, "--out", str(tmp_path / name)]) == 0
    alone = {path.name: load_image(path).numpy() for path in (tmp_path / "alone").glob("*.png")}
    assert len(alone) == (6 if "multidiffusion" in method else 12)  # with what each first stage reached
    records = {name: json.loads((tmp_path / name / "settings.json").read_text())["pictures"] for name in ("alone",)}
    for name in ("together", "uneven"):
        found = {path.name: load_image(path).numpy() for path in (tmp_path / name).glob("*.png")}
        assert found.keys() == alone.keys()
        assert json.loads((tmp_path / name / "settings.json").read_text())["pictures"] == records["alone"]
        for file, pixels in found.items():
            assert np.abs(pixels - alone[file]).max() <= 1 / 255 + 1e-6


def test_the_size_of_a_batch_is_checked(pictures, networks, tmp_path, capsys):
    assert main(["vary", *pictures, *networks, "--batch", "0", "--out", str(tmp_path / "out")]) == 2
    assert "`--batch`=0 must be a whole number from 1 up" in capsys.readouterr().err
