"""Contact sheets of samples."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread, imsave

from FewShotSegLib.data.structures import structure_colors
from FewShotSegLib.errors import InputError
from FewShotSegLib.synthesis.plan import Sample, SynthesisRecipe
from FewShotSegLib.visualization.contact_sheet import contact_sheet, is_contact_sheet
from Testing.Library.synthesis.pieces import a_neighbour, a_synthesizer


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_a_contact_sheet_is_a_picture_of_all_samples(tmp_path, rng):
    matplotlib_image = pytest.importorskip("matplotlib.image")
    source = a_synthesizer(SynthesisRecipe(background="neighbour"), neighbours=[a_neighbour()])
    path = tmp_path / "Übersicht 1.png"
    contact_sheet([source.draw(rng) for _ in range(5)], path, columns=3)
    picture = matplotlib_image.imread(path)
    assert picture.shape[1] > 600
    assert picture[..., :3].std() > 0.1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_contact_sheet_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="samples"):
        contact_sheet([], tmp_path / "sheet.png")


def a_sample(value: int = 0, known: bool = True) -> Sample:
    labels = np.zeros((32, 32), np.int32)
    labels[8:24, 8:24] = value
    mask = None if known else np.arange(32)[:, None] * np.ones(32) < 16
    names = {str(value): f"structure {value}"} if value else {}
    return Sample(np.full((32, 32), 0.5, np.float32), labels, mask, {"caption": "p k=3", "structures": names})


def drawn(samples, folder, columns: int = 6) -> np.ndarray:
    contact_sheet(samples, folder / "sheet.png", columns)
    return imread(folder / "sheet.png")[..., :3]


@pytest.mark.parametrize(("count", "columns", "shape"), [(5, 3, (2, 3)), (2, 6, (1, 2))])
def test_samples_fill_rows_from_left_to_right(tmp_path, count, columns, shape):
    rows, wide = shape
    picture = drawn([a_sample() for _ in range(count)], tmp_path, columns)
    assert picture.shape[:2] == (int((2.95 * rows + 0.5) * 110), int(2.6 * wide * 110))


def test_structures_are_outlined_in_their_colours_all_over_the_sheet(tmp_path):
    picture = drawn([a_sample(3), a_sample(9), a_sample()], tmp_path, 3)
    colors = structure_colors({3: "structure 3", 9: "structure 9"})
    thirds = np.array_split(picture[:300], 3, axis=1)  # above the legend
    for value, (own, other) in {3: (0, 1), 9: (1, 0)}.items():
        near = [int((np.abs(third - colors[value]).max(axis=2) < 0.25).sum()) for third in thirds]
        assert near[own] > 20 * max(near[other], near[2], 1)


def test_what_is_unknown_lies_under_a_blue_veil(tmp_path):
    sheets = (drawn([a_sample(known=known)], tmp_path) for known in (True, False))
    blue = [float((sheet[..., 2] - sheet[..., 0]).max()) for sheet in sheets]
    assert blue[0] < 0.02 < 0.1 < blue[1]


def test_no_columns_are_refused(tmp_path):
    with pytest.raises(InputError, match="got 1 and 0"):
        contact_sheet([a_sample()], tmp_path / "sheet.png", columns=0)


def test_a_name_that_looks_like_a_formula_is_a_name(tmp_path):
    sample = a_sample(1)
    sample.provenance["structures"]["1"] = "$\\frac{$"
    assert drawn([sample], tmp_path, 1).std() > 0


def test_a_sheet_is_known_as_one_and_another_picture_is_not(tmp_path):
    drawn([a_sample()], tmp_path)
    assert is_contact_sheet(tmp_path / "sheet.png")
    imsave(tmp_path / "mine.png", np.zeros((8, 8, 3)))
    assert not is_contact_sheet(tmp_path / "mine.png")
