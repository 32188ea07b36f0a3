"""Contact sheets of samples."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.synthesis.plan import SynthesisRecipe
from FewShotSegLib.visualization.contact_sheet import contact_sheet
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
