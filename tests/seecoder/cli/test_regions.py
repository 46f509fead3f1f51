"""What `--region` makes of a picture."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from seecoder.cli.regions import with_regions
from seecoder.images.loading import save_image
from seecoder.sampling import MultiDiffusion


@pytest.mark.parametrize("has_pooled", [True, False])
def test_regions_have_the_context_and_the_pooled_vector_of_their_picture(has_pooled, pictures, tmp_path):
    save_image(torch.ones(3, 4, 4), tmp_path / "white.png")
    context, pooled = torch.rand(1, 5, 8), torch.rand(1, 3)

    def encode_context(picture, image_size):
        assert (picture, image_size) == (pictures[1], 512)
        return (context, pooled) if has_pooled else context

    pipe = SimpleNamespace(encode_context=encode_context, unet=SimpleNamespace(dtype=torch.float64))
    region = [(str(tmp_path / "white.png"), pictures[1])]
    arguments = Namespace(region=region, image_size=512, context_scale=2.0)
    (method,) = with_regions([MultiDiffusion()], arguments, pipe) or []
    (found,) = method.regions
    assert torch.equal(found.context, 2.0 * context.double())
    assert (found.pooled is not None) == has_pooled
    if has_pooled:
        assert torch.equal(found.pooled, 2.0 * pooled.double())
