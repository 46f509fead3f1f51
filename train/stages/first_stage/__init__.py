"""Parts of the autoencoder's stage: its losses, and how good its reconstructions are."""
