"""`seecoder panorama`: wide pictures in windows, open and closed."""

import json
from argparse import Namespace

import pytest
import torch

from seecoder import SeeCoderPipeline
from seecoder.cli import main
from seecoder.cli.panorama import panorama_methods
from seecoder.pipelines.autoencoding import decode_latents
from seecoder.sampling import SyncDiffusion
from tests.fixtures.picture_files import pixels_of, size_of, write_mask


def test_panorama_with_windows(pictures, networks, tmp_path):
    out = tmp_path / "out"
    options = ["--method", "multidiffusion", "--wrap", "--width", "48"]
    assert main(["panorama", pictures[0], *networks, "--out", str(out), *options]) == 0
    assert size_of(out / "0001-first-one-seed0.png") == (16, 48)
    assert json.loads((out / "settings.json").read_text())["command"] == "panorama"
    assert main(["panorama", pictures[0], *networks, "--out", str(out), "--method", "demofusion"]) == 2


@pytest.mark.heavy
def test_a_synchronised_panorama_of_a_closed_loop(
    pictures, networks, base_folder, tiny_encoder, tmp_path, monkeypatch, caplog
):
    """The command is the pipeline, decoded around the border; without LPIPS, which the log says."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    out = tmp_path / "out"
    options = ["--wrap", "--width", "48", "--method-option", "sync_threshold=1.0", "--method-option", "stride=4"]
    assert main(["panorama", pictures[0], *networks, "--out", str(out), *options]) == 0
    assert "LPIPS is not available" in caplog.text
    pipe = SeeCoderPipeline.from_base(base_folder, encoder=tiny_encoder)
    pipe.set_progress_bar_config(disable=True)

    def panorama(wrap=True, **settings):
        method = SyncDiffusion(**{"stride": 4, "closed_loop": True, "sync_threshold": 1.0, **settings})
        common = {"height": 16, "width": 48, "num_inference_steps": 2, "output_type": "latent"}
        latents = pipe(pictures[0], generator=torch.Generator().manual_seed(0), method=method, **common).images
        pixels, _ = decode_latents(pipe.vae, latents, wrap=wrap)
        return pixels_of(pipe.image_processor.postprocess(pixels, output_type="pil")[0])

    found = pixels_of(out / "0001-first-one-seed0.png")
    assert found == panorama()
    for other in ({"wrap": False}, {"closed_loop": False}, {"sync_threshold": 0.0}, {"stride": 2}):
        assert found != panorama(**other)
    assert json.loads((out / "settings.json").read_text())["options"]["method"] == "syncdiffusion"


def test_panorama_methods():
    methods = panorama_methods(Namespace(method="multidiffusion", method_option=[("stride", 4)], wrap=True))
    assert [(type(entry).__name__, entry.closed_loop, entry.stride) for entry in methods] == [
        ("MultiDiffusion", True, 4)
    ]
    methods = panorama_methods(Namespace(method="syncdiffusion", method_option=[], wrap=False))
    assert [(type(entry).__name__, entry.closed_loop) for entry in methods] == [("SyncDiffusion", False)]


@pytest.mark.parametrize("names", ["syncdiffusion,multidiffusion", "MultiDiffusion, SyncDiffusion"])
def test_a_panorama_may_be_synchronised_in_windows_of_its_own(names):
    """Jitter, feather and regions are MultiDiffusion's, and so are the windows that both have settings for."""
    options = [("stride", 4), ("jitter", 1), ("sync_weight", 100)]
    methods = {
        type(entry).__name__: entry
        for entry in panorama_methods(Namespace(method=names, method_option=options, wrap=True))
    }
    windows, sync = methods["MultiDiffusion"], methods["SyncDiffusion"]
    assert (windows.stride, windows.jitter, windows.closed_loop) == (4, 1, True)
    assert (sync.stride, sync.closed_loop, sync.sync_weight) == (None, False, 100)
    for other in ("syncdiffusion,demofusion", "", "multidiffusion,,"):
        with pytest.raises(ValueError, match="makes no panoramas"):
            panorama_methods(Namespace(method=other, method_option=[], wrap=False))


@pytest.mark.heavy
def test_a_synchronised_panorama_with_regions(pictures, networks, tmp_path, capsys):
    right = write_mask(tmp_path / "right.png", left=0.0, right=1.0)
    all_of_it = write_mask(tmp_path / "all.png", left=1.0, right=1.0)
    command = ["panorama", pictures[0], *networks, "--method", "syncdiffusion,multidiffusion", "--width", "48"]
    command += ["--method-option", "bootstrap=0", "--method-option", "sync_threshold=1"]
    made = {}
    for folder, more in (("plain", []), ("half", ["--region", f"{right}={pictures[1]}", "--guidance", "7"])):
        assert main([*command, *more, "--out", str(tmp_path / folder)]) == 0
        made[folder] = pixels_of(tmp_path / folder / "0001-first-one-seed0.png")
    assert made["plain"] != made["half"]
    capsys.readouterr()
    assert main([*command, "--region", f"{all_of_it}={pictures[1]}", "--out", str(tmp_path / "none")]) == 2
    assert "cover the whole picture" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
