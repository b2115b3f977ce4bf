"""The one error type that a user's mistake raises."""


class UserError(Exception):
    """A mistake in what the user gave: one line that says what is wrong and what would be right.

    Commands print the message and exit with status 2; library callers catch it like any exception.
    """
