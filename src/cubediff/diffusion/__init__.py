"""The diffusion process: training objective, guidance, schedulers."""
