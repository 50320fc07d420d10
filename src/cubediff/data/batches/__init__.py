"""Batches of panoramas for training: decoding, augmentation, conditioning photos, and the data module."""
