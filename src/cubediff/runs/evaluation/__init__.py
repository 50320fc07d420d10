"""Runs `cubediff evaluate`: generates what is missing, measures it, and writes the results."""
