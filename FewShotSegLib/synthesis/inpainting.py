"""Removing structures from a slice, so that it can serve as a background."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.linalg import splu

from FewShotSegLib.imaging.slices import LabelledSlice

from .pasting import content_window

Array = np.ndarray[Any, Any]

_REMOVAL_MARGIN_PX = 2.5  # blurred edges of a structure are removed with it, or they would remain as a halo


def without_structures(piece: LabelledSlice) -> Array:
    """Return the image (S, S) with all its structures removed.

    Their pixels and a margin are filled with the harmonic function that interpolates the surroundings (the limit of
    diffusion), plus noise at the level of the structures' interior: a perfectly smooth patch would reveal them.
    """
    window = content_window(piece)
    image, inside = piece.image[window].astype(np.float64), piece.labels[window] != 0
    # Islands are removed too: a bright vessel left inside a removed liver would brighten the whole patch.
    region = ndimage.binary_fill_holes(ndimage.distance_transform_edt(~inside) <= _REMOVAL_MARGIN_PX)
    filled = harmonic_fill(image, region)
    noise = np.random.default_rng(0).standard_normal(image.shape)  # belongs to the slice, not to a sample: fixed seed
    noise = ndimage.gaussian_filter(noise, 0.7)
    filled[region] += _grain_sd(image, inside) / noise.std() * noise[region]
    result = piece.image.copy()
    result[window] = np.clip(filled, 0.0, 1.0)
    return result


def harmonic_fill(image: Array, region: Array) -> Array:
    """Return the image with `region` (bool) replaced by the solution of Laplace's equation; no flux at the border.

    A region covering the whole image becomes the mean of the image. One sparse solve: 0.1 s for 20,000 pixels.
    """
    filled = np.array(image, dtype=np.float64)
    if region.all():
        filled[...] = image.mean()
    if region.all() or not region.any():
        return filled
    laplacian, known = _laplace(image, region)
    filled[region] = splu(laplacian, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(known)
    return filled


def _laplace(image: Array, region: Array) -> tuple[Any, Array]:
    """Return (A, b) with A x = b: every pixel of the region is the mean of its neighbours inside the image."""
    size = int(region.sum())
    number = np.full(region.shape, -1)
    number[region] = np.arange(size)
    degree, known = np.zeros(size), np.zeros(size)
    pairs = []
    for one, other in ((np.s_[:-1, :], np.s_[1:, :]), (np.s_[:, :-1], np.s_[:, 1:])):
        for here, there in ((one, other), (other, one)):
            inside = region[here]
            start, end = number[here][inside], number[there][inside]
            given = np.where(end < 0, image[there][inside], 0.0)
            degree += np.bincount(start, minlength=size)
            known += np.bincount(start, weights=given, minlength=size)
            pairs.append(np.stack([start, end])[:, end >= 0])
    rows, columns = np.concatenate(pairs, axis=1)
    links = sparse.csc_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    return (sparse.diags_array(degree) - links).tocsc(), known


def _grain_sd(image: Array, inside: Array) -> float:
    """Return the noise level inside the structures, from the median deviation from a smoothed image."""
    deep = ndimage.binary_erosion(inside, iterations=3)
    if not deep.any():
        return 0.0
    rough = (image - ndimage.gaussian_filter(image, 1.5))[deep]
    return float(1.4826 * np.median(np.abs(rough - np.median(rough))))
