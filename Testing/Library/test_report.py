"""report.py and charts.py: pictures show what they should, the page is self-contained and escapes its text."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from FewShotSegLib.errors import InputError
from FewShotSegLib.visualization.charts import bars_chart, learning_chart
from FewShotSegLib.visualization.html_page import HtmlPage
from FewShotSegLib.visualization.overlays import overlay_png, png_bytes, upright

COLORS = {1: (1.0, 0.0, 0.0), 2: (0.0, 0.0, 1.0)}
PNG = png_bytes(np.zeros((2, 3, 3), dtype=np.uint8))


def pixels(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png), format="png")[:, :, :3]


def square(low: int, high: int, value: int = 1) -> np.ndarray:
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[low:high, low:high] = value
    return labels


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


def test_an_overlay_without_labels_is_the_enlarged_slice():
    ramp = np.linspace(0, 1, 12, dtype=np.float32)[None, :].repeat(10, axis=0)
    picture = pixels(overlay_png(ramp, np.zeros_like(ramp, dtype=int), None, COLORS, 4))
    assert picture.shape == (40, 48, 3)
    assert picture[20, 2:-2, 1] == pytest.approx(
        np.interp((np.arange(2, 46) + 0.5) / 4 - 0.5, range(12), ramp[0]), abs=0.005
    )
    assert np.ptp(picture, axis=2).max() == 0


def test_the_prediction_is_a_veil_in_the_colour_of_its_structure():
    grey = np.full((20, 20), 0.5, dtype=np.float32)
    picture = pixels(overlay_png(grey, square(5, 15, value=2), None, COLORS, 3))
    assert picture[30, 30] == pytest.approx(0.64 * 0.5 + 0.36 * np.array([0, 0, 1]), abs=0.005)
    assert picture[3, 3] == pytest.approx(0.5, abs=0.005)


def test_the_reference_is_a_line_on_its_border_only():
    grey = np.full((20, 20), 0.5, dtype=np.float32)
    picture = pixels(overlay_png(grey, np.zeros((20, 20), int), square(5, 15), COLORS, 4))
    redness = picture[:, :, 0] - picture[:, :, 2]
    assert redness[40, 19:22].max() > 0.4  # column 20 is the left border at four pixels each
    assert redness[40, 40] == pytest.approx(0, abs=0.005)
    assert picture[40, 5] == pytest.approx(0.5, abs=0.005)


def test_thick_slices_keep_the_shape_of_the_anatomy():
    image = np.zeros((10, 40), dtype=np.float32)
    assert pixels(overlay_png(image, image.astype(int), None, {}, 2, pixel_mm=(5.0, 2.0))).shape == (50, 80, 3)


def test_labels_filling_the_slice_and_colours_without_labels_are_drawn():
    full = np.ones((6, 6), dtype=int)
    assert pixels(overlay_png(np.zeros((6, 6)), full, full, COLORS, 2)).shape == (12, 12, 3)


def test_labels_of_another_shape_are_refused():
    with pytest.raises(InputError, match="one shape"):
        overlay_png(np.zeros((4, 4)), np.zeros((4, 5), int), None, COLORS)


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_an_upright_slice_looks_the_same_from_any_storage_order(signs, order):
    """One dot each at the patient's right, front and head; order: which RAS axis i, j and k run along."""
    ras = np.zeros((9, 9, 9))
    ras[7, 4, 4], ras[4, 7, 4], ras[4, 4, 7] = 1, 2, 3  # right, anterior, superior of the centre
    affine = np.eye(4)
    affine[:3, :3] = 0
    ijk = ras.transpose(order)
    for axis in range(3):
        affine[order[axis], axis] = signs[axis]
        ijk = np.flip(ijk, axis) if signs[axis] < 0 else ijk
    kji = ijk.transpose(2, 1, 0)

    def view(across: int) -> np.ndarray:
        axis = 2 - order.index(across)
        return upright(kji.take(4, axis), affine, axis)

    axial, coronal, sagittal = view(2), view(1), view(0)
    assert (axial[4, 1], axial[1, 4]) == (1, 2)  # right is on the left, front is up
    assert (coronal[4, 1], coronal[1, 4]) == (1, 3)
    assert (sagittal[4, 1], sagittal[1, 4]) == (2, 3)  # front is on the left, head is up


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


def test_charts_have_a_light_and_a_dark_ground():
    chart = bars_chart({"base": {"liver": 0.5, "spleen": 0.4}, "adapted": {"liver": 0.9}})
    assert pixels(chart.light)[2, 2].min() > 0.95
    assert pixels(chart.dark)[2, 2].max() < 0.2


def test_charts_without_numbers_are_refused():
    with pytest.raises(InputError, match="as many losses as steps"):
        learning_chart([], [])
    with pytest.raises(InputError, match="one to three groups"):
        bars_chart({})
