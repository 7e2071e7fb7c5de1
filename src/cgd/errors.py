"""The exceptions that the command turns into one line and an exit code."""


class InputError(ValueError):
    """Bad usage or bad input.

    The message is one line that names the file or value and the remedy; the command prints it
    and exits with code 2.
    """


class CellsFailed(RuntimeError):
    """Some cells of a bench failed, although the input was good; exit code 1."""
