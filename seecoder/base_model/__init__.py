"""The base model (VAE, UNet, scheduler): how it is loaded, what is known about it, how its latents are scaled."""
