"""The diffusion model in pixels: forward process and loss (Eq. 1 and 2), network, sampling."""
