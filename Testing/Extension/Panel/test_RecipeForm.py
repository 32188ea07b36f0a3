"""The form of a recipe shows every option of every method, and gives back exactly what was changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
import qt
import slicer

from FewShotSegLib.data.recipe import check, describe, from_dict, option
from FewShotSegLib.errors import InputError
from FewShotSegLib.methods import METHODS, method
from FewShotSegSlicer.Panel.RecipeForm import RecipeForm


@dataclass(frozen=True)
class Inner:
    angle_deg: float = option(10.0, "Maximum in-plane rotation", min=0, max=180)
    flip: Literal["never", "always"] = option("never", "Mirroring", advanced=True)


@dataclass(frozen=True)
class Recipe:
    """One option of each kind."""

    steps: int = option(400, "Optimization steps", min=1, max=1000)
    rate: float = option(3e-3, "Learning rate", min=1e-6, max=0.1)
    preset: str = option("cpu", "Size", choices=("cpu", "8GB"))
    decoder: bool = option(True, "Adapt the decoder")
    name: str = option("x", "Name", advanced=True)
    weights: str | None = option(None, "Weights file", advanced=True)
    alpha: float | None = option(None, "Scale; none: the rank", advanced=True)
    saving: bool | None = option(None, "Save memory; default: set by the preset", advanced=True)
    blocks: tuple[int, ...] | None = option(None, "Blocks", advanced=True)
    scale: tuple[float, float] = option((0.9, 1.1), "Range of sizes", min=0.1, max=10, advanced=True)
    spacing_mm: tuple[float, float] | None = option(None, "Grid; none: that of the first image", advanced=True)
    inner: Inner = field(default_factory=Inner, metadata={"help": "How samples are drawn"})

    def __post_init__(self) -> None:
        check(self)


EVERYTHING = {
    "steps": 12,
    "rate": 0.00015,
    "preset": "8GB",
    "decoder": False,
    "name": "y",
    "weights": "a.pt",
    "alpha": 8.0,
    "saving": False,
    "blocks": [1, 2],
    "scale": [0.5, 2.0],
    "spacing_mm": [1.5, 2.0],
    "inner": {"angle_deg": 20.0, "flip": "always"},
}


@pytest.fixture
def form(slicerHost):
    parent = qt.QWidget()
    form = RecipeForm(describe(Recipe), parent)
    yield form
    parent.deleteLater()


def labels(form):
    return {label.text.rstrip(":"): label for label in form.widget.findChildren(qt.QLabel)}


def boxes(form, kind=qt.QSpinBox):
    return form.widget.findChildren(kind)


def test_an_untouched_form_overrides_nothing(form):
    assert form.recipe() == {}


def test_what_was_set_comes_back_and_makes_a_valid_recipe(form):
    form.setRecipe(EVERYTHING)
    assert form.recipe() == EVERYTHING
    assert from_dict(Recipe, form.recipe()).inner.angle_deg == 20.0


def test_setting_nothing_brings_the_defaults_back(form):
    form.setRecipe(EVERYTHING)
    form.setRecipe({})
    assert form.recipe() == {}


def test_an_unknown_option_is_refused_by_name(form):
    with pytest.raises(InputError, match=r'no option "stepz"; it has steps'):
        form.setRecipe({"stepz": 1})


def test_a_value_is_limited_to_its_range_and_carries_its_unit(form):
    steps = boxes(form)[0]
    assert (steps.minimum, steps.maximum) == (1, 1000)
    angle = next(box for box in boxes(form, qt.QDoubleSpinBox) if box.suffix == "°")
    assert (angle.minimum, angle.maximum) == (0, 180)


def test_small_numbers_show_their_digits(form):
    assert any(box.text == "0.00300" for box in boxes(form, qt.QDoubleSpinBox))


def test_every_edit_is_told_and_stands_out(form):
    told = []
    form.changed.connect(lambda: told.append(form.recipe()))
    boxes(form)[0].setValue(7)
    assert told == [{"steps": 7}]
    assert "bold" in labels(form)["Steps"].styleSheet
    boxes(form)[0].setValue(400)
    assert labels(form)["Steps"].styleSheet == ""


def test_an_edit_inside_a_part_of_the_recipe_is_told_too(form):
    told = []
    form.changed.connect(lambda: told.append(form.recipe()))
    next(box for box in boxes(form, qt.QDoubleSpinBox) if box.suffix == "°").setValue(5)
    assert told == [{"inner": {"angle_deg": 5.0}}]


def test_simple_options_are_open_and_the_others_are_closed(form):
    groups = slicer.util.findChildren(form.widget, className="ctkCollapsibleGroupBox")
    assert {group.title for group in groups} == {"Advanced", "How samples are drawn"}
    assert all(group.collapsed for group in groups)
    hidden = {label.text for group in groups for label in group.findChildren(qt.QLabel)}
    assert "Steps:" not in hidden
    assert {"Alpha:", "Angle:"} <= hidden


def test_help_names_range_default_and_option(form):
    tip = labels(form)["Steps"].toolTip
    assert tip == "Optimization steps. From 1 to 1000. Default: 400. (steps)"


def test_a_word_in_a_list_of_numbers_is_left_for_the_recipe_to_refuse(form):
    edit = next(edit for edit in boxes(form, qt.QLineEdit) if edit.placeholderText)
    edit.setText("1, two")
    assert form.recipe() == {"blocks": [1, "two"]}
    with pytest.raises(InputError, match="blocks"):
        from_dict(Recipe, form.recipe())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_form_that_fits_the_panel(slicerHost, name):
    parent = qt.QWidget()
    form = RecipeForm(describe(method(name).Recipe), parent)
    assert form.recipe() == {}
    for group in slicer.util.findChildren(form.widget, className="ctkCollapsibleGroupBox"):
        group.collapsed = False
    assert form.widget.property("minimumSizeHint").width() <= 380
    parent.deleteLater()
