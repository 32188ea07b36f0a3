"""Charts of numbers, for light and for dark pages."""

from __future__ import annotations

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.visualization.charts import bars_chart, curves_chart, learning_chart
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
