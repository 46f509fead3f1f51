"""What a call is conditioned on besides pictures: text, and how strongly the UNet sees either."""
