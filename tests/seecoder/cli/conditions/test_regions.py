"""What `--region` makes of a picture."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from seecoder.cli.conditions.regions import with_regions
from seecoder.cli.opening import OpenedPictures
from seecoder.sampling import MultiDiffusion


@pytest.mark.parametrize("has_pooled", [True, False])
def test_regions_have_the_context_and_the_pooled_vector_of_their_picture(has_pooled):
    context, pooled = torch.rand(1, 5, 8), torch.rand(1, 3)
    seen, mask = torch.rand(3, 32, 32), torch.ones(4, 4)

    def context_arguments(image, image_size):
        assert image is seen
        assert image_size is None
        return {"context": context, "pooled_context": pooled} if has_pooled else {"context": context}

    pipe = SimpleNamespace(context_arguments=context_arguments, unet=SimpleNamespace(dtype=torch.float64))
    opened = OpenedPictures(encoded={"cat.png": seen}, masks={"mask.png": mask})
    arguments = Namespace(region=[("mask.png", "cat.png")], context_scale=2.0)
    (method,) = with_regions([MultiDiffusion()], arguments, pipe, opened) or []
    (found,) = method.regions
    assert torch.equal(found.context, 2.0 * context.double())
    assert (found.pooled is not None) == has_pooled
    if has_pooled:
        assert torch.equal(found.pooled, 2.0 * pooled.double())
