"""How far it is from a pipeline's call to the network: whoever debugs a step reads this many frames."""

import traceback
from pathlib import Path

import pytest
import torch

from seecoder import SeeCoderPipeline
from seecoder.sampling import DemoFusion, Method, MultiDiffusion

MAX_FRAMES = 8
PACKAGES = {"torch", "seecoder", "diffusers"}


def frames_to_the_unet(pipe: SeeCoderPipeline, picture: torch.Tensor, method: Method | None) -> list[str]:
    """The functions on the way from `__call__` to the UNet, both ends' modules of torch left out."""
    seen: list[list[traceback.FrameSummary]] = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, given: seen.append(traceback.extract_stack()[:-1]))
    try:
        pipe(picture, height=32, width=32, num_inference_steps=2, method=method)
    finally:
        handle.remove()
    deepest = max(seen, key=len)
    files = [(next((part for part in Path(frame.filename).parts if part in PACKAGES), ""), frame) for frame in deepest]
    own = [f"{Path(frame.filename).name}:{frame.name}" for package, frame in files if package != "torch"]
    return own[own.index("call.py:__call__") :]


@pytest.mark.parametrize(
    "method", [None, MultiDiffusion(stride=4), DemoFusion()], ids=lambda method: type(method).__name__
)
def test_a_call_reaches_the_unet_in_at_most_eight_frames(parts, picture, method):
    pipe = SeeCoderPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    frames = frames_to_the_unet(pipe, picture, method)
    assert len(frames) <= MAX_FRAMES, "\n".join(frames)
    assert frames[-1] == "networks.py:__call__"  # what calls the UNet
