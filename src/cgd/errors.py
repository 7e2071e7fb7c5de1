"""The one exception that means "your input, not our code"."""


class InputError(ValueError):
    """Bad usage or bad input.

    The message is one line that names the file or value and the remedy; the command prints it
    and exits with code 2.
    """
