"""The two exceptions that callers are expected to handle."""

from __future__ import annotations


class InputError(ValueError):
    """The user can fix it: the message says what was given, what is allowed and what to do.

    Raised only by our own checks at the boundary. Any other exception is a defect of this library. The message is a
    single line that every stream can display: text from files may contain line breaks and lone surrogates.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split("\n")).encode("utf-8", "backslashreplace").decode())


def of_the_system(error: OSError) -> str:
    """The message for an operating system error on a file or folder: permissions, space, an invalid name.

    >>> of_the_system(OSError(13, "Permission denied", "a.nrrd"))
    'Cannot use a.nrrd: Permission denied. Check the path, your rights and the free space.'
    """
    about = f" {error.filename}" if error.filename else " a file"
    return f"Cannot use{about}: {error.strerror or error}. Check the path, your rights and the free space."


def reason_of(error: Exception) -> str:
    """The reason of a failure in another library, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


class Cancelled(Exception):  # noqa: N818 - not an error: the user asked for it
    """Raised by a report callback, or at a cancellation point, to stop the work without leaving partial outputs."""


class StopAndKeepBest(Exception):  # noqa: N818 - likewise
    """Requested by the user: training ends early and successfully, with the best state so far."""
