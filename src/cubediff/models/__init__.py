"""Networks: the interface to a family of latent diffusion models, and Stable Diffusion's implementation of it."""
