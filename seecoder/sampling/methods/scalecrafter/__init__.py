"""ScaleCrafter: re-dilated convolutions, so that a UNet sees a large picture as it saw a small one."""
