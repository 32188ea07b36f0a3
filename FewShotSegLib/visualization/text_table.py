"""Tables in plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable


def table(rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines with columns of minimal width.

    >>> table([("liver", "0.9"), ("left kidney", "0.85")])
    ['liver        0.9', 'left kidney  0.85']
    """
    filled = [list(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*filled, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in filled]
