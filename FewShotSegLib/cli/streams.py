"""Output streams that may be missing, or be closed during the work, without ending it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


class Steady:
    """A text stream that is written to as long as it is open, and discarded afterwards."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text if possible; unencodable characters are escaped."""
        if self._stream is not None:
            try:
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    encoding = self._stream.encoding or "ascii"
                    self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            except (OSError, ValueError):  # ValueError: closed
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if possible."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def _give_up(self) -> None:
        """Discard all output from now on, including what is still in the buffer at interpreter exit."""
        stream, self._stream = self._stream, None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, cast(TextIO, stream).fileno())
            os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream if self._stream is not None else sys.__stderr__, name)


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """Make `sys.stdout` and `sys.stderr` steady while the block runs.

    Closed descriptors 0 to 2 are redirected to the null device: otherwise the first files opened would get these
    numbers, and C libraries would print into them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, Steady(sys.stdout)), cast(TextIO, Steady(sys.stderr))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
