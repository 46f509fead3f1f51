"""`seecoder app` opens the page with what the command line names."""

import torch

from seecoder.app import page
from seecoder.cli import main
from seecoder.encoder.context import save_context
from tests.fixtures.pipelines import build_controlnet, build_unet


def test_options_reach_the_page(networks, monkeypatch):
    served = {}
    monkeypatch.setattr(page, "require_gradio", lambda: None)
    monkeypatch.setattr(page, "serve", lambda vary, **options: served.update(options, **vars(vary)))
    options = [option for option in networks if option not in ("--steps", "2")]
    assert main(["app", *options, "--port", "7999", "--max-side", "64", "--image-size", "own"]) == 0
    assert type(served.pop("pipe")).__name__ == "SeeCoderPipeline"
    served.pop("_lock")
    assert served == {"port": 7999, "max_side": 64, "image_size": None, "autoencoder_memory": 6.0}


def test_networks_are_named_by_options_and_the_page_asks_for_their_pictures(networks, tmp_path, monkeypatch, capsys):
    served = []
    monkeypatch.setattr(page, "require_gradio", lambda: None)
    monkeypatch.setattr(page, "serve", lambda vary, **options: served.append(vary.pipe))
    build_controlnet(build_unet()).save_pretrained(tmp_path / "control")
    options = [option for option in networks if option not in ("--steps", "2")]
    options = ["app", *options, "--port", "7999", "--controlnet", str(tmp_path / "control")]
    assert main(options) == 0
    assert type(served[0].controlnet).__name__ == "ControlNetModel"
    capsys.readouterr()
    for option, value in (("--control-image", "cat.png"), ("--control-scale", "0"), ("--ip-adapter-image", "cat.png")):
        assert main([*options, option, value]) == 2
        assert f"`{option}` has no effect: the page asks for it. Leave it out." in capsys.readouterr().err


def test_ready_contexts_are_refused(base_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "require_gradio", lambda: None)
    save_context(tmp_path / "contexts.safetensors", torch.zeros(1, 6, 32))
    assert main(["app", "--base", str(base_folder), "--encoder", str(tmp_path / "contexts.safetensors")]) == 2
    assert "must be an encoder, not ready contexts" in capsys.readouterr().err
