"""The two exceptions that callers are expected to handle."""

from __future__ import annotations


class InputError(ValueError):
    """The user can fix it: the message says what was got, what is allowed and what to do.

    Raised only by our own checks at the boundary. Any other exception is a defect of this library. The message is one
    line that every stream can show: what came from files may hold line ends and halves of characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split("\n")).encode("utf-8", "backslashreplace").decode())


def of_the_system(error: OSError) -> str:
    """The sentence about a file or folder that the operating system refuses: rights, space, a name without meaning.

    >>> of_the_system(OSError(13, "Permission denied", "a.nrrd"))
    'Cannot use a.nrrd: Permission denied. Check the path, your rights and the free space.'
    """
    about = f" {error.filename}" if error.filename else " a file"
    return f"Cannot use{about}: {error.strerror or error}. Check the path, your rights and the free space."


def reason_of(error: Exception) -> str:
    """What another library says of a failure, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


class Cancelled(Exception):  # noqa: N818 - not an error: the user asked for it
    """Raised by a report callback, or at a cancellation point, to stop the work without leaving half an output."""


class StopAndKeepBest(Exception):  # noqa: N818 - likewise
    """The user has seen enough: training ends well, with the best state so far."""
