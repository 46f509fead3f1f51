import torch

from scripts.benchmarks.random_networks import (
    TOY_SDXL_UNET,
    autoencoder,
    small_unet,
    stable_diffusion_scheduler,
    unet,
)


def test_the_schedule_is_stable_diffusions():
    betas = stable_diffusion_scheduler().betas
    expected = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(betas, expected)


def test_the_toy_network_has_the_interface_of_sdxl():
    network = unet(**TOY_SDXL_UNET)
    added = {"text_embeds": torch.zeros(1, 16), "time_ids": torch.zeros(1, 6)}
    output = network(torch.zeros(1, 4, 16, 16), 5, torch.zeros(1, 3, 16), added_cond_kwargs=added).sample
    assert output.shape == (1, 4, 16, 16)


def test_levels_halve_the_picture_and_nothing_is_trained():
    vae = autoencoder((8, 8, 8), norm_num_groups=4)
    assert vae.decode(torch.zeros(1, 4, 4, 4)).sample.shape == (1, 3, 16, 16)
    assert not any(
        weight.requires_grad for network in (vae, small_unet((8, 8), 8, 4)) for weight in network.parameters()
    )
