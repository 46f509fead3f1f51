"""`seecoder app` opens the page with what the command line names."""

import torch

from seecoder.app import page
from seecoder.cli import main
from seecoder.encoder.context import save_context


def test_options_reach_the_page(networks, monkeypatch):
    served = {}
    monkeypatch.setattr(page, "require_gradio", lambda: None)
    monkeypatch.setattr(page, "serve", lambda vary, **options: served.update(options, **vars(vary)))
    options = [option for option in networks if option not in ("--steps", "2")]
    assert main(["app", *options, "--port", "7999", "--max-side", "64", "--image-size", "own"]) == 0
    assert type(served.pop("pipe")).__name__ == "SeeCoderPipeline"
    served.pop("_lock")
    assert served == {"port": 7999, "max_side": 64, "image_size": None, "autoencoder_memory": 6.0}


def test_ready_contexts_are_refused(base_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "require_gradio", lambda: None)
    save_context(tmp_path / "contexts.safetensors", torch.zeros(1, 6, 32))
    assert main(["app", "--base", str(base_folder), "--encoder", str(tmp_path / "contexts.safetensors")]) == 2
    assert "must be an encoder, not ready contexts" in capsys.readouterr().err
