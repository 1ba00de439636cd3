# SPDX-License-Identifier: GPL-2.0-or-later
"""What our HTML pages are made of: one file without scripts, sections, tables whose cells may be links."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vnet_standby.report.style import STYLE
from vnet_standby.report.svg import node


@dataclass(frozen=True)
class Link:
    """Text in a table that leads to a file beside the page."""

    text: str
    href: str
    hint: str = ""


Cell = object | Sequence[Link | str]
"""What a table shows in a place: anything as its text, or a sequence of links and texts."""


def opened(title: str) -> tuple[ET.Element, ET.Element]:
    """Return a new page and the element that its content goes into."""
    root = ET.Element("html", lang="en")
    head = node(root, "head")
    node(head, "meta", charset="utf-8")
    node(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    node(head, "meta", name="color-scheme", content="light dark")
    policy = node(head, "meta", content="default-src 'none'; style-src 'unsafe-inline'")
    policy.set("http-equiv", "Content-Security-Policy")
    node(head, "title", f"vnet-standby: {title}")
    # not by node(): a style sheet is the one text whose line breaks have to stay
    ET.SubElement(head, "style").text = STYLE
    return root, node(node(root, "body"), "main")


def written(root: ET.Element) -> str:
    """Return a page as text."""
    return "<!DOCTYPE html>\n" + ET.tostring(root, encoding="unicode", method="html") + "\n"


def add_section(main: ET.Element, heading: str) -> ET.Element:
    """Add a section."""
    added = node(main, "section")
    node(added, "h2", heading)
    return added


def add_legend(parent: ET.Element, looks: Iterable[tuple[str, str]]) -> None:
    """Add what the looks in a plot mean."""
    listed = node(parent, "ul", class_="legend")
    for look, text in looks:
        item = node(listed, "li")
        node(item, "span", class_=f"swatch {look}")
        node(item, "span", text)


def add_warnings(main: ET.Element, heading: str, told: Sequence[str]) -> None:
    """Add a box with warnings."""
    box = node(main, "section", class_="warnings")
    node(box, "h2", heading)
    listed = node(box, "ul")
    for warning in told:
        node(listed, "li", warning)


def add_table(
    parent: ET.Element, head: Sequence[str], rows: Iterable[Sequence[Cell]], *, words: set[int]
) -> None:
    """Add a table; the columns whose index is in `words` hold text, the others figures."""
    body = node(node(parent, "div", class_="wide"), "table")
    names = node(node(body, "thead"), "tr")
    for i, name in enumerate(head):
        node(names, "th", name, scope="col", class_="word" if i in words else "figure")
    lines = node(body, "tbody")
    for row in rows:
        cells = node(lines, "tr")
        for i, cell in enumerate(row):
            look = "word" if i in words else "figure"
            if isinstance(cell, list | tuple):
                _fill(node(cells, "td", class_=look), cell)
            else:
                node(cells, "td", cell, class_=look)


def _fill(place: ET.Element, parts: Sequence[Link | str]) -> None:
    for part in parts:
        if isinstance(part, Link):
            link = node(place, "a", part.text, href=part.href)
            if part.hint:
                link.set("title", part.hint)
        else:
            node(place, "span", part)
