"""Shards of precomputed latents and text states: the writer that encodes panoramas, and the reader for training
(CubeDiff, section 4.1: both encoders stay frozen)."""
