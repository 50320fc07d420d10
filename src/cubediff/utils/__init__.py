"""What several packages share: atomic files, errors, ranks, logging."""
