"""Helpers that several packages share: atomic files, errors, lazy imports, ranks, logging."""
