"""Slices of ellipses in a body, annotated, empty or unlabelled, and a synthesizer of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from FewShotSegLib.imaging.slice_frame import SliceFrame
from FewShotSegLib.imaging.slices import LabelledSlice
from FewShotSegLib.synthesis.plan import SynthesisRecipe
from FewShotSegLib.synthesis.synthesizer import Synthesizer

SIZE = 128
NAMES = {1: "liver", 2: "spleen", 5: "aorta"}
# (row, column) of the centre, radii, angle
ELLIPSES = {
    1: ((60.0, 40.0), (30.0, 22.0), 20.0),
    2: ((55.0, 92.0), (16.0, 10.0), -30.0),
    5: ((88.0, 70.0), (6.0, 6.0), 0.0),
}
VALUES = {1: 0.6, 2: 0.75, 5: 0.9}

# Everything off that a test does not speak of.
PLAIN = SynthesisRecipe(
    scale=(1, 1),
    rotation_deg=0,
    shift=0,
    elastic=0,
    gain=(1, 1),
    bias=0,
    blur_sigma_px=0,
    noise_sd=0,
    rim=0,
    feather_px=0,
    original_probability=0,
    empty_probability=0,
    keep_structure_probability=1,
    background="known_empty",
)


def an_ellipse(centre, radii, angle_deg, scale=1.0, size=SIZE) -> np.ndarray:
    rows, columns = np.indices((size, size)) - np.asarray(centre)[:, None, None]
    angle = np.deg2rad(angle_deg)
    first = np.cos(angle) * rows + np.sin(angle) * columns
    second = -np.sin(angle) * rows + np.cos(angle) * columns
    return (first / radii[0] / scale) ** 2 + (second / radii[1] / scale) ** 2 <= 1


def a_body(level: float, seed: int, content=(SIZE, SIZE)) -> np.ndarray:
    image = np.zeros((SIZE, SIZE), np.float32)
    body = an_ellipse((64, 64), (56, 60), 0)
    image[body] = level + np.random.default_rng(seed).normal(0, 0.01, body.sum())
    image[content[0] :] = 0
    image[:, content[1] :] = 0
    return image


def a_slice(image, labels, name, annotated=True, content=(SIZE, SIZE)) -> LabelledSlice:
    frame = SliceFrame(0, 0, content, (1.0, 1.0), SIZE, content)
    return LabelledSlice(image.astype(np.float32), labels.astype(np.int32), frame, name, annotated)


def an_annotated_slice(name="anna k=5", ellipses=ELLIPSES, content=(SIZE, SIZE)) -> LabelledSlice:
    image, labels = a_body(0.3, 1, content), np.zeros((SIZE, SIZE), np.int32)
    for value, ellipse in ellipses.items():
        mask = an_ellipse(*ellipse)
        mask[content[0] :] = mask[:, content[1] :] = False
        labels[mask] = value
        image[mask] = VALUES[value] + np.random.default_rng(value).normal(0, 0.01, mask.sum())
    return a_slice(image, labels, name, content=content)


def a_background(name="anna k=40", seed=7) -> LabelledSlice:
    return a_slice(a_body(0.2, seed), np.zeros((SIZE, SIZE)), name)


def a_neighbour() -> LabelledSlice:
    return dataclasses.replace(a_background("anna k=6", 8), annotated=False)


def a_synthesizer(recipe=PLAIN, *, pieces=None, backgrounds=None, neighbours=(), names=NAMES, **options) -> Synthesizer:
    recipe = dataclasses.replace(recipe, **options)
    pieces = [an_annotated_slice()] if pieces is None else pieces
    backgrounds = [a_background()] if backgrounds is None else backgrounds
    return Synthesizer(pieces, backgrounds, neighbours, recipe, names)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def the_same(first, second) -> bool:
    known = (first.known is None) == (second.known is None) and np.array_equal(first.known, second.known)
    return known and np.array_equal(first.image, second.image) and np.array_equal(first.labels, second.labels)
