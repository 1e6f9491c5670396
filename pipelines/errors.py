"""The one exception that means "the user can mend this", and text from outside made fit to be shown."""

import argparse
import errno
import logging
import re
from typing import NoReturn

# C0 and C1 controls (a terminal obeys them: ESC, backspace, carriage return), line and paragraph separators, marks that
# reverse the direction of text (a name reads as another), lone surrogates (bytes that are no UTF-8: print raises).
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class UserError(ValueError):
    """Bad input from the user. The message is one line: it names the thing at fault and the mend.

    Entry points print it as `error: <message>` on stderr and exit with code 2, without a traceback.
    """


# What a user can mend outside the program: permissions, a full or read-only disk, a file where a folder is wanted.
_MENDABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG,
}  # fmt: skip


def mendable(error: OSError) -> str:
    """What to tell the user of an error that is no fault of the program; "" for any other."""
    return f"{error.filename or 'a file'}: {error.strerror}" if error.errno in _MENDABLE else ""


class Parser(argparse.ArgumentParser):
    """argparse's, with its complaints as UserError: they repeat words of the command line, such as what `*` found."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the words as they are and leaving."""
        raise UserError(f"{message} (--help shows the usage)")


def printable(text: object) -> str:
    r"""Text from outside (a file name, a transcription, another program's words) as one harmless line.

    What a terminal or a log reader would obey is written as Python writes it: `\x1b`, `\n`, `\u202e`, `\udc80`.
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


class OneLine(logging.Formatter):
    """A log record as one harmless line: records repeat names of files."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's text, `printable`."""
        return printable(super().format(record))
