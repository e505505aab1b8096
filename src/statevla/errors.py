"""The one exception that input may cause."""


class UserError(Exception):
    """Bad input, configuration or environment.

    The message is one line: what was expected, what was found, and how to mend it. The command line prints it
    and exits with status 2; it is never shown with a traceback.
    """
