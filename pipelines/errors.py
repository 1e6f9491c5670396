"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """Bad input from the user. The message is one line: it names the thing at fault and the mend.

    Entry points print it as `error: <message>` on stderr and exit with code 2, without a traceback.
    """
