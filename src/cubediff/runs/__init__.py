"""Runs: training with checkpoints and records, resuming, export, and sweeps."""
