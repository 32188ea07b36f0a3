"""HTML reports: one self-contained file with numbers, charts and overlays.

report = HtmlPage("Adapted to 3 slices", "What was done, in one sentence.")
report.numbers([("Dice, adapted", "0.91")])
report.table(["Structure", "Dice"], [["liver", 0.95]])
report.gallery([(overlay_png(slice01, pred, ref, colors), "Patient 4, slice 18")], "Prediction and reference")
report.write("report.html")
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.structures import Color
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import write_text_whole

from .charts import Chart

Array = NDArray[Any]
Cell = str | int | float | None


# ------------------------------------------------------------------------------------------------------------ overlays


# -------------------------------------------------------------------------------------------------------------- report


class HtmlPage:
    """Collects blocks in order; `write` makes one HTML file. All text is escaped."""

    def __init__(self, title: str, intro: str = "") -> None:
        self.title = title
        self._blocks: list[str] = [f"<h1>{escape(title)}</h1>"]
        if intro:
            self._blocks.append(f'<p class="intro">{escape(intro)}</p>')

    def heading(self, text: str) -> HtmlPage:
        self._blocks.append(f"<h2>{escape(text)}</h2>")
        return self

    def text(self, text: str) -> HtmlPage:
        """A paragraph; an empty line starts a new one."""
        self._blocks += [f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip()]
        return self

    def note(self, text: str) -> HtmlPage:
        """A highlighted remark: a warning, a limitation."""
        self._blocks.append(f'<p class="note">{escape(text)}</p>')
        return self

    def numbers(self, items: Iterable[tuple[str, str]]) -> HtmlPage:
        """Key numbers in large type: (label, value)."""
        tiles = (f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for what, value in items)
        self._blocks.append(f'<div class="numbers">{"".join(tiles)}</div>')
        return self

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = "") -> HtmlPage:
        """Numbers are right-aligned, floats with three decimals, None as a dash; the header row is sticky."""
        body = [list(row) for row in rows]
        for row in body:
            if len(row) != len(headers):
                raise InputError(f"A table row needs {len(headers)} cells like its headers, got {len(row)}: {row}.")
        numeric = [
            any(_is_number(r[c]) for r in body) and not any(isinstance(r[c], str) for r in body)
            for c in range(len(headers))
        ]
        head = "".join(f"<th{_right(right)}>{escape(text)}</th>" for text, right in zip(headers, numeric, strict=True))
        lines = "".join(
            "<tr>" + "".join(f"<td{_right(n)}>{_cell(v)}</td>" for v, n in zip(row, numeric, strict=True)) + "</tr>"
            for row in body
        )
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._blocks.append(
            f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
        )
        return self

    def figure(self, picture: bytes | Chart, caption: str) -> HtmlPage:
        """A full-width image. A `Chart` follows the reader's light or dark setting."""
        self._blocks.append(_figure(picture, caption))
        return self

    def gallery(self, pictures: Iterable[tuple[bytes, str]], caption: str = "") -> HtmlPage:
        """Images (PNG, caption) side by side, as many as fit the window."""
        if caption:
            self._blocks.append(f'<p class="caption">{escape(caption)}</p>')
        self._blocks.append(f'<div class="gallery">{"".join(_figure(png, text) for png, text in pictures)}</div>')
        return self

    def legend(
        self, structures: Mapping[int, str], colors: Mapping[int, Color], filled: str = "prediction"
    ) -> HtmlPage:
        """Legend of the overlay colours: what is filled, and, beside predictions, outlines of the reference."""
        chips = "".join(
            f'<span><i style="background:{_css(colors[value])}"></i>{escape(name)}</span>'
            for value, name in structures.items()
            if value in colors
        )
        how = f'<span><i class="veil"></i>{escape(filled)}</span>'
        if filled == "prediction":
            how += '<span><i class="line"></i>reference</span>'
        self._blocks.append(f'<div class="legend">{chips}<em></em>{how}</div>')
        return self

    def html(self) -> str:
        """Return the whole page."""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(self._blocks)
            + "\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> None:
        """Write the page as one self-contained file."""
        write_text_whole(path, self.html())


def _is_number(value: Cell) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "&ndash;"
    return f"{value:.3f}" if isinstance(value, float | np.floating) else escape(str(value))


def _right(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _css(color: Color) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)


def _figure(picture: bytes | Chart, caption: str) -> str:
    light, dark = (picture.light, picture.dark) if isinstance(picture, Chart) else (picture, None)
    width, height = _png_size(light)
    text = escape(caption)
    image = f'<img src="{_data_url(light)}" alt="{text}" width="{width}" height="{height}">'
    if dark is not None:
        source = f'<source srcset="{_data_url(dark)}" media="(prefers-color-scheme: dark)">'
        image = f"<picture>{source}{image}</picture>"
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _png_size(png: bytes) -> tuple[int, int]:
    """Width and height from the header, which also verifies that it is a PNG."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        raise InputError("A figure of a report must be a PNG picture.")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


_CSS = """
:root { --paper:#ffffff; --ink:#1d2733; --soft:#667380; --line:#e3e8ed; --tint:#f5f7f9;
  --mark:#1f7a8c; --warn:#b7791f; }
@media (prefers-color-scheme: dark) {
  :root { --paper:#161b21; --ink:#e7ecf1; --soft:#93a0ad; --line:#2b333c; --tint:#1c232b;
    --mark:#4fb3c6; --warn:#e0ac55; }
}
* { box-sizing:border-box; }
body { margin:0; background:var(--paper); color:var(--ink); -webkit-font-smoothing:antialiased;
  font:16px/1.6 Inter,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:1080px; margin:0 auto; padding:56px 28px 96px; }
h1 { font-size:2.1rem; line-height:1.2; font-weight:650; letter-spacing:-.02em; margin:0 0 .5rem; text-wrap:balance; }
h2 { font-size:1.25rem; font-weight:620; letter-spacing:-.01em; margin:3.2rem 0 .8rem; padding-top:1.4rem;
  border-top:1px solid var(--line); }
p { max-width:72ch; margin:.7rem 0; }
.intro { font-size:1.12rem; color:var(--soft); max-width:66ch; }
.note { border-left:3px solid var(--warn); background:var(--tint); border-radius:0 8px 8px 0; padding:.7rem 1rem; }
.caption { color:var(--soft); font-size:.92rem; }
.numbers { display:grid; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); gap:14px; margin:1.8rem 0; }
.numbers div { background:var(--tint); border-radius:12px; padding:18px 20px; }
.numbers b { display:block; font-size:1.9rem; line-height:1.15; font-weight:620; letter-spacing:-.02em;
  font-variant-numeric:tabular-nums; color:var(--mark); }
.numbers span { display:block; color:var(--soft); font-size:.88rem; margin-top:.25rem; }
.scroll { overflow-x:auto; margin:1.2rem 0; }
table { border-collapse:collapse; width:100%; font-size:.95rem; }
caption { text-align:left; color:var(--soft); font-size:.92rem; padding-bottom:.5rem; }
th { text-align:left; color:var(--soft); font-weight:560; font-size:.84rem; white-space:nowrap; }
th, td { padding:.5rem .9rem .5rem 0; border-bottom:1px solid var(--line); }
td.n, th.n { text-align:right; font-variant-numeric:tabular-nums; }
tbody tr:hover { background:var(--tint); }
figure { margin:1.4rem 0; }
figure img { display:block; width:100%; height:auto; border-radius:10px; }
figcaption { color:var(--soft); font-size:.88rem; margin-top:.5rem; }
.gallery { display:grid; grid-template-columns:repeat(auto-fill,minmax(300px,1fr)); gap:18px; margin:1rem 0; }
.gallery figure { margin:0; }
.legend { display:flex; flex-wrap:wrap; gap:.4rem 1.2rem; font-size:.92rem; margin:1rem 0; align-items:center; }
.legend span { display:inline-flex; align-items:center; gap:.45rem; }
.legend i { width:.85rem; height:.85rem; border-radius:50%; display:inline-block; }
.legend em { flex:1 1 1rem; }
.legend .veil { border-radius:3px; background:var(--soft); opacity:.45; width:1.2rem; }
.legend .line { border-radius:3px; border:2px solid var(--soft); width:1.2rem; }
@media print { main { max-width:none; padding:0; } figure, .numbers, table { break-inside:avoid; } }
"""
