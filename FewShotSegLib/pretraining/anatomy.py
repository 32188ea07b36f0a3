"""Random anatomy-like label maps and images: endless pre-training data without a single patient.

A `Scene` is painted back to front like a cross-section: body outline, tissue partition, organs with fat around them,
rings with lumens, crescents, tubes, lesions inside organs; then everything is bent by one smooth deformation. `render`
gives a
scene one of countless looks (tissue contrasts, textures, bias field, blur, noise). Shapes and looks are drawn apart,
each from an explicit generator, so one scene can be seen under many "scanners".

The idea of learning from random shapes with random contrasts is that of SynthMorph (Hoffmann et al. 2022) and SynthSeg
(Billot et al. 2023); the shape vocabulary here is our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Scene:
    """Label map (H, W) uint8 and, per label, the label it lies in (0 = none). Label 0 is air."""

    labels: NDArray[np.uint8]
    parents: tuple[int, ...]

    def region(self, label: int, *, with_children: bool) -> NDArray[np.bool_]:
        """Pixels of a label, with everything painted inside it when asked (liver including its lesions)."""
        wanted = [label]
        if with_children:
            for child, parent in enumerate(self.parents):
                if parent in wanted and child > label:
                    wanted.append(child)
        return np.isin(self.labels, wanted)


@lru_cache(maxsize=256)
def _interpolation(size: int, knots: int) -> Array:
    """Cubic B-spline weights (size, knots) that turn a coarse random grid into a smooth field."""
    positions = np.linspace(0, knots - 3, size, endpoint=False, dtype=np.float64)
    distance = np.abs(positions[:, None] + 1 - np.arange(knots)[None, :])
    near = (4 - 6 * distance**2 + 3 * distance**3) / 6
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def smooth_field(rng: np.random.Generator, size: int, wavelength: float) -> Array:
    """Smooth random field (size, size) of about unit variance; `wavelength` in pixels."""
    knots = max(round(size / wavelength), 1) + 3
    weights = _interpolation(size, knots)
    coarse = rng.standard_normal((knots, knots)).astype(np.float32)
    return np.asarray(2 * (weights @ coarse @ weights.T), np.float32)


class _Canvas:
    """Labels under construction; every paint call adds one label."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.labels = np.zeros((size, size), np.uint8)
        self.parents = [0]
        self.y, self.x = np.mgrid[:size, :size].astype(np.float32)

    def paint(self, mask: NDArray[np.bool_], parent: int = 0, inside: NDArray[np.bool_] | None = None) -> int:
        if len(self.parents) >= 250:
            return 0
        if inside is not None:
            mask = mask & inside
        label = len(self.parents)
        self.labels[mask] = label
        self.parents.append(parent)
        return label

    def blob(
        self, rng: np.random.Generator, centre: tuple[float, float], radius: float, elongation: float = 0.6
    ) -> Array:
        """Signed field, negative inside: a rotated superellipse with a wavy outline."""
        aspect = np.exp(rng.uniform(-elongation, elongation))
        angle = rng.uniform(0, np.pi)
        dy, dx = self.y - centre[0], self.x - centre[1]
        u = (np.cos(angle) * dx + np.sin(angle) * dy) / (radius * aspect)
        v = (-np.sin(angle) * dx + np.cos(angle) * dy) * aspect / radius
        power = rng.uniform(1.7, 3.0)
        field = (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power) - 1
        theta = np.arctan2(v, u)
        for frequency in range(2, int(rng.integers(3, 7))):
            amplitude = rng.normal(0, 0.16 / (frequency - 1))
            field -= amplitude * np.cos(frequency * theta + rng.uniform(0, 2 * np.pi))
        return field


def draw_scene(rng: np.random.Generator, size: int = 256) -> Scene:
    """A random cross-section of `size` x `size` pixels."""
    canvas = _Canvas(size)
    body = _paint_body(canvas, rng)
    _paint_tissues(canvas, rng, body)
    # Radii are log-uniform: clinics care about adrenals as much as about livers.
    painters = [_paint_organ, _paint_ring, _paint_tube, _paint_crescent, _paint_cluster]
    weights = np.array([0.62, 0.12, 0.12, 0.07, 0.07])
    for _ in range(int(rng.integers(3, 17))):
        painter = painters[int(rng.choice(len(painters), p=weights))]
        painter(canvas, rng, body)
    return Scene(_bend(canvas.labels, rng), tuple(canvas.parents))


def _centre(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> tuple[float, float]:
    inside = np.flatnonzero(body)
    where = int(inside[rng.integers(len(inside))]) if len(inside) else canvas.size**2 // 2
    return float(where // canvas.size), float(where % canvas.size)


def _radius(canvas: _Canvas, rng: np.random.Generator, low: float = 0.014, high: float = 0.26) -> float:
    return float(canvas.size * np.exp(rng.uniform(np.log(low), np.log(high))))


def _paint_body(canvas: _Canvas, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Skin outline with layers below it; one image in four is a crop without any air."""
    if rng.random() < 0.25:
        body = np.ones_like(canvas.labels, bool)
        canvas.paint(body)
        return body
    centre = canvas.size * rng.uniform(0.42, 0.58, 2)
    field = canvas.blob(rng, (centre[0], centre[1]), canvas.size * rng.uniform(0.34, 0.55), 0.25)
    parent = canvas.paint(field < 0)
    depth = 0.0
    for _ in range(int(rng.integers(0, 3))):
        depth -= rng.uniform(0.03, 0.14)
        parent = canvas.paint(field < depth, parent)
    return np.asarray(field < depth)


def _paint_tissues(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """Partition of the interior by smooth fields (muscle, fat, grey and white matter...)."""
    if rng.random() < 0.45:
        return
    wavelength = canvas.size * rng.uniform(0.12, 0.6)
    fields = [smooth_field(rng, canvas.size, wavelength) for _ in range(int(rng.integers(2, 6)))]
    winner = np.argmax(fields, axis=0)
    for value in range(1, len(fields)):
        canvas.paint(winner == value, 1, body)


def _paint_organ(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    centre, radius = _centre(canvas, rng, body), _radius(canvas, rng)
    field = canvas.blob(rng, centre, radius)
    if rng.random() < 0.5:  # fat plane or capsule, one to a few pixels wide
        canvas.paint(field < rng.uniform(0.5, 4) / radius, 1, body)
    mask = (field < 0) & body
    organ = canvas.paint(mask, 1)
    if radius > 0.05 * canvas.size:
        for _ in range(int(rng.integers(0, 4))):  # lesions, vessels, calyces
            inner = radius * rng.uniform(0.08, 0.45)
            canvas.paint(canvas.blob(rng, _centre(canvas, rng, mask), inner) < 0, organ, mask)


def _paint_ring(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """Wall and lumen: myocardium, bowel, vessel wall, skull."""
    field = canvas.blob(rng, _centre(canvas, rng, body), _radius(canvas, rng, 0.03, 0.3))
    wall = canvas.paint(field < 0, 1, body)
    canvas.paint(field < -rng.uniform(0.12, 0.5), wall, body)


def _paint_crescent(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """A blob with a bite taken out: right ventricle, pancreas head, subdural blood."""
    centre, radius = _centre(canvas, rng, body), _radius(canvas, rng, 0.04, 0.22)
    outer = canvas.blob(rng, centre, radius) < 0
    away = rng.uniform(0, 2 * np.pi)
    shift = radius * rng.uniform(0.3, 0.9)
    bite = (centre[0] + shift * float(np.sin(away)), centre[1] + shift * float(np.cos(away)))
    canvas.paint(outer & (canvas.blob(rng, bite, radius * rng.uniform(0.7, 1.1)) > 0), 1, body)


def _paint_tube(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """A winding, branching vessel seen along its course."""
    lines = np.zeros_like(body)
    starts = [(*_centre(canvas, rng, body), rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.8) * canvas.size)]
    for _ in range(int(rng.integers(1, 6))):
        y, x, heading, length = starts[int(rng.integers(len(starts)))]
        steps = int(max(length, 8))
        turns = np.cumsum(rng.normal(0, 0.08, steps)) + heading
        ys, xs = y + np.cumsum(np.sin(turns)), x + np.cumsum(np.cos(turns))
        keep = (ys >= 0) & (xs >= 0) & (ys < canvas.size) & (xs < canvas.size)
        lines[ys[keep].astype(int), xs[keep].astype(int)] = True
        cut = int(rng.integers(steps // 4, steps))
        starts.append((ys[cut], xs[cut], turns[cut] + rng.choice([-0.7, 0.7]), length * 0.7))
    width = canvas.size * np.exp(rng.uniform(np.log(0.004), np.log(0.035)))
    canvas.paint(ndimage.distance_transform_edt(~lines) < width, 1, body)


def _paint_cluster(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """Several like bodies under one label: bowel loops, vertebrae and ribs, scattered lesions."""
    mask = np.zeros_like(body)
    radius = _radius(canvas, rng, 0.012, 0.07)
    for _ in range(int(rng.integers(2, 8))):
        mask |= canvas.blob(rng, _centre(canvas, rng, body), radius * rng.uniform(0.7, 1.3)) < 0
    canvas.paint(mask, 1, body)


def _bend(labels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    size = labels.shape[0]
    y, x = np.mgrid[:size, :size].astype(np.float32)
    for wavelength in (0.5, 0.15):
        strength = size * wavelength * rng.uniform(0, 0.07)
        y = y + strength * smooth_field(rng, size, size * wavelength)
        x = x + strength * smooth_field(rng, size, size * wavelength)
    rows = np.clip(np.rint(y), 0, size - 1).astype(np.intp)
    columns = np.clip(np.rint(x), 0, size - 1).astype(np.intp)
    return labels[rows, columns]


def render(scene: Scene, rng: np.random.Generator) -> Array:
    """One look of a scene: (H, W) float32 in [0, 1]."""
    size, count = scene.labels.shape[0], len(scene.parents)
    # Few tissue classes for many labels: neighbours often share a grey value, as organs do.
    tissues = rng.uniform(0, 1, int(rng.integers(3, 9)))
    means = tissues[rng.integers(len(tissues), size=count)] + rng.normal(0, rng.uniform(0.01, 0.08), count)
    means[0] = rng.choice([0.0, means.min() - 0.1, rng.uniform(0, 1)], p=[0.5, 0.3, 0.2])
    image = means.astype(np.float32)[scene.labels]
    image = _textured(image, scene.labels, rng)
    if rng.random() < 0.7:  # bias field, or attenuation with depth
        wavelength = size * rng.uniform(0.5, 1.5)
        image = image * np.exp(rng.uniform(0, 0.3) * smooth_field(rng, size, wavelength))
    image = ndimage.gaussian_filter(image, rng.uniform(0.3, 1.6) * size / 256, mode="nearest")
    image = _noisy(image, rng)
    low, high = np.percentile(image[::3, ::3], [rng.uniform(0, 3), rng.uniform(97, 100)])
    image = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
    return np.asarray(image ** np.exp(rng.normal(0, 0.25)), np.float32)


def _textured(image: Array, labels: NDArray[np.uint8], rng: np.random.Generator) -> Array:
    """Adds coarse and fine texture whose strength differs from label to label."""
    size, count = labels.shape[0], int(labels.max()) + 1
    for wavelength in (rng.uniform(2, 8), rng.uniform(10, 60)):
        strength = np.abs(rng.normal(0, rng.uniform(0, 0.08), count)).astype(np.float32)
        image = image + strength[labels] * smooth_field(rng, size, wavelength * size / 256)
    return image


def _noisy(image: Array, rng: np.random.Generator) -> Array:
    sd = np.exp(rng.uniform(np.log(0.003), np.log(0.1)))
    noise = rng.standard_normal((2, *image.shape)).astype(np.float32) * np.float32(sd)
    kind = rng.random()
    if kind < 0.25:  # Rician: magnitude of a complex signal
        return np.hypot(image + noise[0], noise[1])
    if kind < 0.35:  # speckle
        return image * (1 + 3 * noise[0])
    if kind < 0.6:  # reconstruction kernels correlate the noise of neighbouring pixels
        blurred = ndimage.gaussian_filter(noise[0], rng.uniform(0.5, 1.2))
        return image + blurred * np.float32(sd / max(float(blurred.std()), 1e-6))
    return image + noise[0]
