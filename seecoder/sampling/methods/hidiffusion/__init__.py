"""HiDiffusion: deep features at the size that the network knows, and self-attention in shifted windows."""
