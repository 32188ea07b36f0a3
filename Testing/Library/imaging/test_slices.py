"""Slices of an exemplar as the network sees them: annotated, vouched to be empty, unknown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.imaging.slice_frame import mask_from_network
from FewShotSegLib.imaging.slices import (
    background_slices,
    in_one_piece,
    labelled_slices,
    neighbour_slices,
    shown_together,
)


def a_volume(shape=(20, 40, 60), spacing_mm=(0.8, 0.8, 5.0), directions=None, dtype=np.float32) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if directions is None else directions) * np.asarray(spacing_mm)
    affine[:3, 3] = (-31.0, 12.5, 140.0)
    values = np.random.default_rng(3).normal(size=shape) * 100
    return Volume(values.astype(dtype), affine)


@pytest.fixture
def an_exemplar():
    volume = a_volume(shape=(12, 40, 60))
    labels = np.zeros(volume.shape, np.uint8)
    labels[5, 10:20, 10:30] = 2
    labels[6, 12:18, 10:30] = 2
    return Exemplar(volume, labels, {2: "spleen"}, 0, (5, 6), (1, 2, 11), "anna")


WINDOW = IntensitySpec("window", -100, 100)


def test_labelled_slices_carry_image_labels_and_where_they_come_from(an_exemplar):
    slices = labelled_slices(an_exemplar, WINDOW, 120)
    assert [piece.source for piece in slices] == ["anna k=5", "anna k=6"]
    first = slices[0]
    assert first.annotated
    assert first.image.shape == first.labels.shape == (120, 120)
    assert first.image.min() >= 0
    assert first.image.max() <= 1
    assert (first.labels == 2).sum() == 4 * 200
    expected = np.clip((an_exemplar.volume.array[5, 20, 30] + 100) / 200, 0, 1)
    assert mask_from_network(first.image, first.frame)[20, 30] == pytest.approx(expected, abs=0.25)


def test_background_slices_are_only_those_vouched_to_be_empty(an_exemplar):
    slices = background_slices(an_exemplar, WINDOW, 64)
    assert [piece.frame.index for piece in slices] == [1, 2, 11]
    assert all(piece.annotated and not piece.labels.any() for piece in slices)


def test_a_limit_keeps_backgrounds_evenly_spread(an_exemplar):
    assert [piece.frame.index for piece in background_slices(an_exemplar, WINDOW, 64, limit=2)] == [1, 11]
    assert background_slices(an_exemplar, WINDOW, 64, limit=0) == []


def test_neighbours_are_the_nearest_unknown_slices(an_exemplar):
    slices = neighbour_slices(an_exemplar, WINDOW, 64, per_side=2)
    assert [piece.frame.index for piece in slices] == [4, 7, 3, 8]
    assert not any(piece.annotated for piece in slices)


@pytest.mark.parametrize("kind", ["percentile", "minmax"])
def test_a_constant_slice_becomes_zeros(kind):
    array = np.full((4, 20, 20), 37, np.int16)
    labels = np.zeros(array.shape, np.uint8)
    labels[1, 5:9, 5:9] = 1
    exemplar = Exemplar(Volume(array, np.eye(4)), labels, {1: "liver"}, 0, (1,))
    image = labelled_slices(exemplar, IntensitySpec(kind, 0.5, 99.5), 32)[0].image
    assert not image.any()


def test_what_is_scattered_is_told_from_what_is_in_one_piece_or_two_of_like_size(an_exemplar) -> None:
    piece = labelled_slices(an_exemplar, WINDOW, 64)[0]
    labels = np.zeros((64, 64), np.int32)
    labels[4:20, 4:20] = 1
    labels[30:40, 4:14], labels[30:40, 30:38] = 2, 2  # kidneys
    for at in range(5):
        labels[50 + at, 8 * at : 8 * at + at + 1] = 3  # lesions
    labels[4:20, 40:56], labels[20, 60] = 4, 4  # a speck beside it
    names = {1: "liver", 2: "kidneys", 3: "lesions", 4: "spleen", 5: "absent"}
    assert in_one_piece([replace(piece, labels=labels)], names) == ["liver", "kidneys", "spleen"]


def test_what_slices_show_together_is_told_once_for_each_set(an_exemplar) -> None:
    piece = labelled_slices(an_exemplar, WINDOW, 64)[0]
    labels = [np.zeros((64, 64), np.int32) for _ in range(4)]
    labels[0][2:5, 2:5], labels[0][9:12, 2:5], labels[1][2:5, 2:5], labels[2][2:5, 2:5] = 1, 2, 1, 1
    shown = shown_together([replace(piece, labels=one) for one in labels], {1: "liver", 2: "spleen", 3: "absent"})
    assert shown == [["liver"], ["liver", "spleen"]]
