"""What is trained: encoder, autoencoder, diffusion model, backbone; and the parts of their losses."""
