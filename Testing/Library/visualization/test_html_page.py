"""The page is self-contained, and escapes its text."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.visualization.charts import bars_chart, learning_chart
from FewShotSegLib.visualization.html_page import HtmlPage
from FewShotSegLib.visualization.overlays import png_bytes
from Testing.Library.visualization.pixels import COLORS

PNG = png_bytes(np.zeros((2, 3, 3), dtype=np.uint8))


class Page(HTMLParser):
    """Collects tags and visible text; complains about tags that are not closed in order."""

    VOID = ("meta", "img", "source", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words, self.open = "", []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_the_page_is_self_contained_well_formed_and_escaped(tmp_path):
    report = HtmlPage("A <b> & co", "intro <script>alert(1)</script>")
    report.heading("H <1>").text("one\n\ntwo & three").note("careful <now>").numbers([("Dice <x>", "0.9 & more")])
    report.table(["name <n>", "Dice"], [["<liver>", 0.95123], ["spleen", None]], "cap <c>")
    report.figure(PNG, 'a "quoted" <caption>').gallery([(PNG, "left"), (PNG, "right")], "both <sides>")
    report.legend({1: "liver <l>", 9: "unseen"}, COLORS).figure(bars_chart({"base": {"a": 0.4}}), "bars")
    report.write(tmp_path / "sub folder" / "report.html")
    html = (tmp_path / "sub folder" / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    sources = [attrs[key] for _, attrs in page.tags for key in ("src", "srcset", "href") if key in attrs]
    assert len(sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\(", html)
    assert "script" not in [tag for tag, _ in page.tags]
    for text in ("A <b> & co", "<liver>", "0.951", "two & three", "careful <now>", "both <sides>", "liver <l>"):
        assert text in page.words
    assert "unseen" not in page.words
    assert 'a "quoted" <caption>' in [attrs.get("alt") for _, attrs in page.tags]
    assert "prefers-color-scheme: dark" in html


def test_a_table_row_of_another_length_and_a_figure_that_is_no_png_are_refused():
    with pytest.raises(InputError, match="2 cells"):
        HtmlPage("t").table(["a", "b"], [["only one"]])
    with pytest.raises(InputError, match="PNG"):
        HtmlPage("t").figure(b"GIF89a", "no")


def test_the_same_content_gives_the_same_page():
    def page() -> str:
        curve = learning_chart(range(30), np.linspace(1, 0.2, 30).tolist(), [(0, 0.2), (29, 0.9)], best=29)
        return HtmlPage("t").figure(curve, "c").figure(PNG, "p").html()

    assert page() == page()


def cells(page: HtmlPage) -> list[list[str]]:
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page.html())]


def test_numbers_have_three_decimals_and_what_is_missing_a_dash() -> None:
    rows = [
        ["liver", 0.12345, 3, None],
        ["spleen", np.float32(2.0), np.int64(4), float("nan")],
        ["x", float("inf"), True, 1.0],
    ]
    assert cells(HtmlPage("t").table(["a", "b", "c", "d"], rows)) == [
        ["a", "b", "c", "d"],
        ["liver", "0.123", "3", "&ndash;"],
        ["spleen", "2.000", "4", "&ndash;"],
        ["x", "&ndash;", "True", "1.000"],
    ]


def test_columns_of_numbers_are_set_right_and_others_left() -> None:
    html = HtmlPage("t").table(["a", "b", "c"], [["x", 1, 2], ["y", None, "2"], ["z", 0.5, 3]]).html()
    assert re.findall(r"<th( class=\"n\")?>", html) == ["", ' class="n"', ""]


def test_pictures_keep_their_size_and_their_bytes() -> None:
    png = png_bytes(np.full((5, 9, 3), 40, np.uint8))
    html = HtmlPage("t").figure(png, "p").html()
    pattern = r'src="data:image/png;base64,([^"]+)" alt="p" width="(\d+)" height="(\d+)"'
    ((source, width, height),) = re.findall(pattern, html)
    assert base64.b64decode(source) == png
    assert (width, height) == ("9", "5")


def test_an_empty_line_begins_another_paragraph_and_blanks_make_none() -> None:
    assert re.findall(r"<p>(.*?)</p>", HtmlPage("t").text("  one\n\n\n\ntwo \n\n ").html()) == ["one", "two"]


def test_blocks_stand_in_the_order_they_were_added() -> None:
    html = HtmlPage("title").heading("first").note("second").text("third").heading("fourth").html()
    places = [html.index(f">{word}<") for word in ("first", "second", "third", "fourth")]
    assert places == sorted(places)
