"""The diffusers pipeline and the loading of model folders."""
