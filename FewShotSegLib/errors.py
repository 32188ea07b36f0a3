"""The two exceptions that callers are expected to handle."""

from __future__ import annotations


class InputError(ValueError):
    """The user can fix it: the message says what was got, what is allowed and what to do.

    Raised only by our own checks at the boundary. Any other exception is a defect of this library.
    """


class Cancelled(Exception):  # noqa: N818 - not an error: the user asked for it
    """Raised by a report callback, or at a cancellation point, to stop the work without leaving half an output."""


class StopAndKeepBest(Exception):  # noqa: N818 - likewise
    """The user has seen enough: training ends well, with the best state so far."""
