"""Appearance of a scene: rendering by a random scanner. Greyscale, like all model inputs here.

Contrasts, textures and gradients per tissue, bias field, partial volume, anisotropic pixels, motion ghosts, noise of
five kinds, window, inversion: all drawn from one explicit generator.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from FewShotSegLib.pretraining.anatomy import Array, Scene, smooth_field


def render(scene: Scene, rng: np.random.Generator) -> Array:
    """One rendering of a scene: (H, W) float32 in [0, 1]."""
    size = scene.labels.shape[0]
    image = _means(scene, rng)[scene.labels]
    image = _textured(image, scene, rng)
    if rng.random() < 0.7:  # coil bias field, or attenuation with depth
        wavelength = size * rng.uniform(0.5, 1.5)
        image = image * np.exp(rng.uniform(0, 0.35) * smooth_field(rng, size, wavelength))
    image = _blurred(image, rng)
    if rng.random() < 0.08:
        image = _ghosted(image, rng)
    image = _noisy(image, rng)
    low, high = np.percentile(image[::3, ::3], [rng.uniform(0, 4), rng.uniform(95, 100)])
    image = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1) ** np.exp(rng.normal(0, 0.3))
    return np.asarray(1 - image if rng.random() < 0.08 else image, np.float32)


def _means(scene: Scene, rng: np.random.Generator) -> Array:
    """Grey value of each label. Few classes for many labels: neighbours often share a value, as organs do."""
    count = len(scene.parents)
    classes = rng.uniform(0, 1, int(rng.integers(3, 9)))
    means = classes[rng.integers(len(classes), size=count)] + rng.normal(0, rng.uniform(0.01, 0.08), count)
    means[0] = rng.choice([0.0, means.min() - 0.1, rng.uniform(0, 1)], p=[0.5, 0.3, 0.2])
    return means[list(scene.tissues)].astype(np.float32)


def _textured(image: Array, scene: Scene, rng: np.random.Generator) -> Array:
    """Adds coarse and fine texture and a gradient, with tissue-dependent strength."""
    size, tissues = scene.labels.shape[0], np.array(scene.tissues)
    for wavelength in (rng.uniform(2, 8), rng.uniform(10, 60)):
        strength = np.abs(rng.normal(0, rng.uniform(0, 0.08), len(tissues)))[tissues].astype(np.float32)
        strength[0] *= rng.random() < 0.2  # air has no texture, except for artefacts
        image = image + strength[scene.labels] * smooth_field(rng, size, wavelength * size / 256)
    if rng.random() < 0.3:  # incompletely mixed contrast agent, perfusion, coil sensitivity within an organ
        ramp = np.linspace(-1, 1, size, dtype=np.float32)
        slopes = rng.normal(0, rng.uniform(0, 0.15), (2, len(tissues)))[:, tissues].astype(np.float32)
        image = image + slopes[0][scene.labels] * ramp[:, None] + slopes[1][scene.labels] * ramp[None, :]
    return np.asarray(image, np.float32)


def _blurred(image: Array, rng: np.random.Generator) -> Array:
    """Partial volume; one image in five has coarser pixels along one axis, as reformatted slices do."""
    size = image.shape[0]
    widths = np.full(2, rng.uniform(0.3, 1.6) * size / 256)
    if rng.random() >= 0.2:
        return np.asarray(ndimage.gaussian_filter(image, widths, mode="nearest"), np.float32)
    axis, factor = int(rng.integers(2)), rng.uniform(1.5, 4.0)
    widths[axis] *= factor
    image = ndimage.gaussian_filter(image, widths, mode="nearest")
    coarse = np.minimum((np.arange(size) // factor + 0.5) * factor, size - 1)
    below = np.floor(coarse).astype(np.intp)
    if rng.random() < 0.5:
        return np.asarray(np.take(image, below, axis), np.float32)
    # Linear interpolation between the coarse samples, the other common display of such slices.
    known = np.unique(below)
    position = np.interp(np.arange(size), known, np.arange(len(known)))
    low = np.floor(position).astype(np.intp)
    part = (position - low).astype(np.float32)
    part = part[:, None] if axis == 0 else part[None, :]
    first, second = known[low], known[np.minimum(low + 1, len(known) - 1)]
    return np.asarray((1 - part) * np.take(image, first, axis) + part * np.take(image, second, axis), np.float32)


def _ghosted(image: Array, rng: np.random.Generator) -> Array:
    """Respiratory motion in MR: faint ghosts along the phase-encoding direction."""
    axis, shift = int(rng.integers(2)), int(image.shape[0] * rng.uniform(0.05, 0.4))
    strength = np.float32(rng.uniform(0.03, 0.2))
    return np.asarray(image + strength * (np.roll(image, shift, axis) + np.roll(image, -shift, axis)), np.float32)


def _noisy(image: Array, rng: np.random.Generator) -> Array:
    sd = np.exp(rng.uniform(np.log(0.003), np.log(0.1)))
    noise: NDArray[np.float32] = rng.standard_normal((2, *image.shape)).astype(np.float32) * np.float32(sd)
    kind = rng.random()
    if kind < 0.25:  # Rician: magnitude of a complex signal
        return np.hypot(image + noise[0], noise[1])
    if kind < 0.32:  # speckle, finer axially than laterally, as in ultrasound
        grain = ndimage.gaussian_filter(noise[0], (0.5, 1.2)) * 2
        return np.asarray(image * (1 + 4 * grain), np.float32)
    if kind < 0.38:
        return np.asarray(image * (1 + 3 * noise[0]), np.float32)
    if kind < 0.62:  # reconstruction kernels correlate the noise of neighbouring pixels
        blurred = ndimage.gaussian_filter(noise[0], rng.uniform(0.5, 1.2))
        return image + blurred * np.float32(sd / max(float(blurred.std()), 1e-6))
    return image + noise[0]
