"""Errors that a user can act on."""


class DataError(ValueError):
    """Invalid input data. The message is one line that says what is wrong and what to change."""
