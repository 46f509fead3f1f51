"""Real components at toy size, built from seeds, and no way to the network."""

import socket
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel

from seecoder import SeeCoder

CONTEXT_DIM = 32
LATENT_SIDE = 8  # of the tiny UNet; its VAE has a factor of two, so that native pictures are 16 pixels wide


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only this machine may be connected to (the web app's tests start a server)."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise OSError(f"the tests run without network; something wanted {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")


def build_scheduler(**changes):
    """Stable Diffusion's schedule."""
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    return DDIMScheduler(**{**settings, **changes})


def build_unet(**changes):
    torch.manual_seed(1)
    settings = {
        "sample_size": LATENT_SIDE,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": CONTEXT_DIM,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def build_vae(**changes):
    torch.manual_seed(2)
    settings = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 16,
    }
    return AutoencoderKL(**{**settings, **changes}).eval()


TINY_SWIN = {
    "backbone": "swin_tiny_patch4_window7_224",
    "backbone_args": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4},
    "num_heads": 4,
    "decoder_layers": 1,
    "decoder_ffn_dim": 32,
    "query_layers": 3,
    "query_ffn_dim": 32,
    "num_global_queries": 1,
    "num_local_queries": 5,
}


def build_encoder(**changes):
    torch.manual_seed(3)
    settings = {**TINY_SWIN, "context_dim": CONTEXT_DIM, "decoder_attention": "released"}
    return SeeCoder(**{**settings, **changes}).eval()


@pytest.fixture(scope="session")
def tiny_unet():
    return build_unet()


@pytest.fixture(scope="session")
def tiny_vae():
    return build_vae()


@pytest.fixture(scope="session")
def tiny_encoder():
    return build_encoder()


@pytest.fixture
def tiny_scheduler():
    return build_scheduler()


@pytest.fixture(scope="session")
def tiny_controlnet(tiny_unet):
    torch.manual_seed(4)
    # Two conditioning channels, so that the hint shrinks by two, as this VAE does.
    controlnet = ControlNetModel.from_unet(tiny_unet, conditioning_embedding_out_channels=(8, 16)).eval()
    with torch.no_grad():
        # A fresh ControlNet ends in zeros and would change nothing.
        for name, weight in controlnet.named_parameters():
            if "controlnet_" in name:
                weight.normal_(std=0.2)
    return controlnet


@pytest.fixture
def parts(tiny_unet, tiny_vae, tiny_encoder, tiny_scheduler):
    """The components of a tiny pipeline."""
    return {"unet": tiny_unet, "vae": tiny_vae, "scheduler": tiny_scheduler, "encoder": tiny_encoder}


@pytest.fixture
def build():
    """Builders of the tiny components, for tests that need their own."""
    return {"unet": build_unet, "vae": build_vae, "encoder": build_encoder, "scheduler": build_scheduler}


@pytest.fixture
def picture():
    """A picture (3, 40, 48) with structure in it."""
    rows, columns = torch.linspace(0, 1, 40)[:, None], torch.linspace(0, 1, 48)[None, :]
    return torch.stack([rows.expand(40, 48), columns.expand(40, 48), (rows - columns).abs()])


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory, tiny_unet, tiny_vae) -> Path:
    """A tiny base as diffusers saves Stable Diffusion, with a text encoder's folder that must not be read."""
    folder = tmp_path_factory.mktemp("base")
    tiny_unet.save_pretrained(folder / "unet")
    tiny_vae.save_pretrained(folder / "vae")
    build_scheduler().save_pretrained(folder / "scheduler")
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "config.json").write_text("this is not even JSON")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "text_encoder": ["x", "y"]}')
    return folder
