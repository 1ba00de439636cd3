# SPDX-License-Identifier: GPL-2.0-or-later
"""Text in columns: what fits a terminal's cells, and names that can't play tricks on it."""

import unicodedata
from collections.abc import Sequence


def printable(text: object) -> str:
    """Return `text` on one line, with everything that is not plainly visible written as its escape.

    Device names and command lines come from outside: neither an escape sequence nor a reversed
    reading direction may reach the terminal, and XML has no way to hold control characters at all.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in str(text)
    )


def cells(text: str) -> int:
    """Return the terminal columns that `text` takes (Unicode annex 11: wide characters, two)."""
    return sum(_cells_of(char) for char in text)


def _cells_of(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def wrap(text: str, width: int) -> list[str]:
    """Break `text` at spaces into lines of at most `width` columns; a longer word is cut."""
    lines = [""]
    for word in printable(text).split(" "):
        for piece in _pieces(word, width):
            if not lines[-1]:
                lines[-1] = piece
            elif cells(lines[-1]) + 1 + cells(piece) <= width:
                lines[-1] += " " + piece
            else:
                lines.append(piece)
    return lines


def _pieces(word: str, width: int) -> list[str]:
    pieces = [""]
    for char in word:
        if cells(pieces[-1]) + _cells_of(char) > width:
            pieces.append("")
        pieces[-1] += char
    return pieces


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Fill `text` with spaces up to `width` columns; `right` aligns it to the right."""
    fill = " " * (width - cells(text))
    return fill + text if right else text + fill


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> list[str]:
    """Lay out a table: the first `words` columns are text (left), the others figures (right)."""
    widths = [max(cells(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            pad(cell, width, right=i >= words)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
