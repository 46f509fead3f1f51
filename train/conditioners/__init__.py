"""What a base can be told beside noisy latents; a configuration names the class of each condition."""
