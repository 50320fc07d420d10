"""Sweeps: result records, failure isolation, GPU assignment, the report."""
