"""Evaluation of generated panoramas."""
