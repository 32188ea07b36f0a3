"""Charts of numbers, for light and for dark pages."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.visualization import charts
from FewShotSegLib.visualization.charts import (
    DOTS_PER_INCH,
    MOST_ARMS,
    bars_chart,
    boxes_chart,
    choices_chart,
    curves_chart,
    gallery_chart,
    learning_chart,
    scores_chart,
)
from Testing.Library.evaluation.cases import some_rows
from Testing.Library.visualization.pixels import pixels


def test_charts_have_a_light_and_a_dark_ground():
    chart = bars_chart({"base": {"liver": 0.5, "spleen": 0.4}, "adapted": {"liver": 0.9}})
    assert pixels(chart.light)[2, 2].min() > 0.95
    assert pixels(chart.dark)[2, 2].max() < 0.2


def test_charts_without_numbers_are_refused():
    with pytest.raises(InputError, match="as many losses as steps"):
        learning_chart([], [])
    with pytest.raises(InputError, match="one to three groups"):
        bars_chart({})


def test_curves_need_something_to_draw() -> None:
    with pytest.raises(InputError, match="no curves"):
        curves_chart({}, "slices")
    chart = curves_chart({"a": {"x": [(1, 0.2), (4, 0.5)], "y": [(1, 0.1)]}}, "slices")
    assert chart.light != chart.dark


def test_more_curves_than_colours_are_told_apart_and_too_many_refused() -> None:
    def of(count: int) -> dict[str, dict[str, list[tuple[float, float]]]]:
        return {"a": {f"model {at}": [(1, 0.1 * at), (4, 0.1 * at)] for at in range(count)}}

    four, five = (pixels(curves_chart(of(count), "slices").light)[100:350] for count in (4, 5))
    assert (four != five).any()
    with pytest.raises(InputError, match="at most 8 curves, got 9"):
        curves_chart(of(9), "slices")


def test_boxes_lie_where_their_values_do() -> None:
    """One group, one box: nothing above its largest and below its smallest value."""
    picture = boxes_chart({"acdc": {"4": [0.4, 0.45, 0.5, 0.6]}}, "slices").light
    height = pixels(picture).shape[0]
    top, bottom = 1 - 0.88, 1 - 0.2  # of the axes
    at = {value: top + (bottom - top) * (1 - value) for value in (0.62, 0.79, 0.38, 0.21)}
    middle = {"left": 0.4, "right": 0.7}
    assert ink(picture, at[0.62], at[0.38], **middle) > 0.02
    assert ink(picture, at[0.79], at[0.62], **middle) == ink(picture, at[0.38], at[0.21], **middle) == 0
    assert height == pytest.approx(3.0 * DOTS_PER_INCH, abs=1)
    with pytest.raises(InputError, match="at least one value each"):
        boxes_chart({"acdc": {"4": []}}, "slices")


def ink(png: bytes, top: float, bottom: float, left: float = 0.0, right: float = 1.0) -> float:
    """Share of the pixels in a part of a picture that differ from its ground."""
    picture = pixels(png)
    height, width = picture.shape[:2]
    part = picture[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
    return float((np.abs(part - picture[2, 2]).max(axis=2) > 0.1).mean())


def test_scores_grow_with_structures_and_scopes() -> None:
    rows = some_rows()
    one = [row for row in rows if row.structure == "liver" and row.scope == "all_slices"]
    heights = [pixels(scores_chart(some).light).shape[0] for some in (one, rows)]
    sizes = [(1.35 + count * (0.30 + 0.26 * scopes)) * DOTS_PER_INCH for count, scopes in ((1, 1), (2, 2))]
    assert heights == pytest.approx(sizes, abs=1)
    with pytest.raises(InputError, match="no scores"):
        scores_chart([])


@pytest.mark.parametrize("count", [1, 2, 5, 40, 133])
def test_the_smoothed_loss_is_the_mean_of_what_lies_around(count: int) -> None:
    values = np.random.default_rng(count).random(count)
    half = max(count // 20, 1)
    expected = [values[max(at - half, 0) : at + half + 1].mean() for at in range(count)]
    np.testing.assert_allclose(charts._smooth(values), expected, atol=1e-12)


def test_a_learning_curve_has_a_second_half_where_there_is_something_held_back() -> None:
    steps, loss = range(1, 9), np.linspace(1, 0.2, 8).tolist()
    alone = learning_chart(steps, loss)
    both = learning_chart(steps, loss, [(4, 0.5), (8, 0.9)], best=8)
    assert pixels(alone.light).shape == pixels(both.light).shape == (544, 1536, 3)
    assert ink(both.light, 0.2, 0.7, 0.55, 0.95) < ink(alone.light, 0.2, 0.7, 0.55, 0.95)  # a few dots beside a curve
    with pytest.raises(InputError, match="got 7 and 8"):
        learning_chart(steps, loss[:-1])


def test_pictures_of_stages_lie_one_below_the_other_unchanged() -> None:
    red, blue = (np.full((20, 60, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    picture = pixels(gallery_chart({"first": red, "second": blue}).light)
    middle = picture[:, picture.shape[1] // 2]
    rows_red, rows_blue = (np.flatnonzero((middle == color).all(axis=1)) for color in ((1, 0, 0), (0, 0, 1)))
    assert len(rows_red) > 0
    assert rows_red.max() < rows_blue.min()
    assert len(rows_red) == pytest.approx(3.0 * DOTS_PER_INCH, abs=2)  # 9 inches wide, a third as high
    with pytest.raises(InputError, match="at least one picture"):
        gallery_chart({})


def a_summary(arms: int, turns: int = 30) -> dict[str, object]:
    names = [f"north: organ {arm}" for arm in range(arms)]
    rng = np.random.default_rng(0)
    rows = [{"turn": 0, "name": name, "cosine": 0.1} for name in names]
    rows += [
        {"turn": turn, "name": names[int(rng.integers(arms))], "cosine": None if turn == 3 else float(rng.normal())}
        for turn in range(1, turns + 1)
    ]
    return {"arms": names, "turns": rows, "left_out": {names[0]: "damaged"}}


def test_choices_have_a_row_for_each_arm_up_to_a_limit() -> None:
    arms = 60
    picture = pixels(choices_chart(a_summary(arms)).light)
    assert picture.shape[0] == pytest.approx((1.15 + 0.24 * min(arms, MOST_ARMS)) * DOTS_PER_INCH, abs=1)
    with pytest.raises(InputError, match="at least one turn"):
        choices_chart(a_summary(arms, turns=0))


def test_bars_of_values_that_are_missing_are_left_out() -> None:
    groups = {"base": {"liver": 0.5, "spleen": 0.5}, "adapted": {"liver": 0.5, "spleen": 0.5}}
    whole = bars_chart(groups)
    lacking = bars_chart({**groups, "adapted": {"liver": 0.5}})
    left, right = (0.15, 0.45), (0.55, 0.95)
    assert ink(whole.light, 0.2, 0.7, *left) == pytest.approx(ink(lacking.light, 0.2, 0.7, *left))
    assert ink(whole.light, 0.2, 0.7, *right) > 1.5 * ink(lacking.light, 0.2, 0.7, *right)
    with pytest.raises(InputError, match="got 4 groups"):
        bars_chart({str(number): {"liver": 0.5} for number in range(4)})
