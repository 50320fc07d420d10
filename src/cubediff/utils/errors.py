"""Errors that a user can fix."""


class DataError(ValueError):
    """Invalid input data. Its message is one line: what was expected, what was found, what to do."""
