"""Pixel features of a slice (appearance and position), and a logistic-regression pixel classifier that is fitted in
about a second.

A promptable model's encoder already separates tissues and organs; what it lacks is their names. Softmax regression from
its features to names is a convex problem, solved well enough in a second for thousands of pixels, and gives a
probability map of each structure.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from FewShotSegLib.sam.network import Embedding

LARGEST_GRID = 128  # pixels per side; a finer grid would cost memory without adding information from the features
NEIGHBOURHOODS = (1, 3, 7, 15)  # side lengths in pixels of the grid
WAVES = 64
WAVE_RATE = 2.5  # radians per half body: resolves positions a quarter of the body apart
BLURS = (1.0, 2.0, 4.0, 8.0)  # pixels of the grid
PENALTY = 1e-3
# Solver iterations from zero (early stopping). More overfit the few slices: with 20, Dice of brain tumours on other
# patients fell from 0.69 to 0.26 with 4 slices and from 0.83 to 0.42 with 16; a larger penalty is no substitute.
STEPS = 10


@dataclass(frozen=True, eq=False)
class PixelMaps:
    """appearance (C, g, g): encoder features, local mean and standard deviation of the intensities; position (2, g, g):
    x and y from the centre of the body, in half body sizes.
    """

    appearance: Tensor
    position: Tensor

    @functools.cached_property
    def place(self) -> Tensor:
        """Waves and powers of the positions (g g, P), an input of every classifier."""
        return _place(self.position.flatten(1).T)


def grid_of(image_size: int) -> int:
    """Side of the pixel grid of a network square.

    >>> grid_of(160), grid_of(1024)
    (80, 128)
    """
    return min(image_size // 2, LARGEST_GRID)


def pixel_maps(image: NDArray[np.float32], embedding: Embedding) -> PixelMaps:
    """The maps of one slice: image (S, S) in [0, 1], and its embedding."""
    grid = grid_of(image.shape[0])
    maps = [_on_grid(map_.float(), grid) for map_ in (embedding.features, *embedding.skips)]
    device = embedding.features.device
    intensities = _intensities(torch.from_numpy(image).to(device), grid)
    return PixelMaps(torch.cat([*maps, intensities], dim=1)[0], _position(image, grid).to(device))


def _on_grid(maps: Tensor, grid: int) -> Tensor:
    if maps.shape[-1] > grid:
        return F.adaptive_avg_pool2d(maps, grid)
    return F.interpolate(maps, (grid, grid), mode="bilinear")


def _intensities(image: Tensor, grid: int) -> Tensor:
    """(1, 2 x neighbourhoods, g, g): local means, then standard deviations."""
    mean, square = (F.adaptive_avg_pool2d(values[None, None], grid) for values in (image, image**2))
    means, deviations = [], []
    for side in NEIGHBOURHOODS:
        around, squares = (
            F.avg_pool2d(values, side, stride=1, padding=side // 2, count_include_pad=False)
            for values in (mean, square)
        )
        means.append(around)
        deviations.append((squares - around**2).clamp(min=0).sqrt())
    return torch.cat([*means, *deviations], dim=1)


def _position(image: NDArray[np.float32], grid: int) -> Tensor:
    """Position relative to the body, roughly the bright area, so that patients and fields of view are comparable."""
    smooth = ndimage.uniform_filter(image, 5)
    parts, count = ndimage.label(smooth > 0.5 * _otsu(smooth))
    body = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:])) if count else np.ones_like(parts, bool)
    stride = image.shape[0] / grid
    axes = []
    for other in (0, 1):  # columns, then rows
        used = np.flatnonzero(body.any(other))
        middle, half = (used[0] + used[-1]) / 2, max((used[-1] - used[0]) / 2, image.shape[0] / 20)
        axes.append(((np.arange(grid) + 0.5) * stride - 0.5 - middle) / half)
    x, y = np.meshgrid(*axes)
    return torch.from_numpy(np.stack([x, y]).astype(np.float32)).clamp(-1.5, 1.5)


def _otsu(values: NDArray[np.float32]) -> float:
    """The threshold in [0, 1] with the largest between-class variance (Otsu 1979)."""
    counts, edges = np.histogram(values, 64, (0.0, 1.0))
    centres = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), counts.sum()
    sums = np.cumsum(counts * centres)
    spread = (sums[-1] / total * below - sums) ** 2 / np.maximum(below * (total - below), 1)
    return float(centres[np.argmax(spread)])


@dataclass(frozen=True, eq=False)
class PixelSamples:
    """Training pixels: appearance (n, C), position (n, 2), shares (n, K + 1): fractions of background and structures
    that sum to 1, weights (n,): how many pixels each one stands for; where (n,): indices into their own grid.
    """

    appearance: Tensor
    position: Tensor
    shares: Tensor
    weights: Tensor
    where: Tensor


def drawn_pixels(
    maps: PixelMaps,
    labels: NDArray[np.int32],
    structures: tuple[int, ...],
    content: tuple[int, int],
    most: int,
    rng: np.random.Generator,
) -> PixelSamples:
    """Up to `most` pixels of a slice with labels (S, S): half of them divided evenly among structures, so that small
    ones are represented like large ones, the rest background. Padding beyond the content (h, w) is left out.
    """
    grid = maps.position.shape[-1]
    shares = shares_of(labels, structures, grid)
    stride = labels.shape[0] / grid
    inside = np.zeros((grid, grid), bool)
    inside[: math.ceil(content[0] / stride), : math.ceil(content[1] / stride)] = True
    kind = np.where(inside, shares.argmax(0).numpy(), -1).ravel()
    present = [value for value in np.unique(kind) if value > 0]
    chosen: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float32]] = []
    for value in (*present, 0):
        where = np.flatnonzero(kind == value)
        quota = most // 2 // len(present) if value else most - sum(len(taken) for taken in chosen)
        taken = where if len(where) <= quota else rng.choice(where, quota, replace=False)
        chosen.append(taken)
        weights.append(np.full(len(taken), len(where) / max(len(taken), 1), np.float32))
    device = maps.position.device
    index = torch.from_numpy(np.concatenate(chosen)).to(device)
    appearance, position, share = (
        part.flatten(1)[:, index].T for part in (maps.appearance, maps.position, shares.to(device))
    )
    return PixelSamples(appearance, position, share, torch.from_numpy(np.concatenate(weights)).to(device), index)


def shares_of(labels: NDArray[np.int32], structures: tuple[int, ...], grid: int) -> Tensor:
    """(K + 1, g, g): the fraction of each pixel that background and structures cover."""
    values = torch.tensor(structures).view(-1, 1, 1)
    shares = F.adaptive_avg_pool2d((torch.from_numpy(labels)[None] == values).float(), grid)
    return torch.cat([1 - shares.sum(0, keepdim=True), shares])


def together(samples: Sequence[PixelSamples], every: int = 1) -> PixelSamples:
    """Concatenate several sets, keeping every `every`-th pixel."""
    parts = zip(*((s.appearance, s.position, s.shares, s.weights, s.where) for s in samples), strict=True)
    return PixelSamples(*(torch.cat([rows[::every] for rows in part]) for part in parts))


def context_of(log_odds: Tensor) -> Tensor:
    """Context features (4 K, g, g): the structure probabilities (K, g, g), blurred at increasing scales."""
    probabilities = torch.sigmoid(log_odds).cpu().numpy()
    blurred = [ndimage.gaussian_filter(probabilities, (0, sigma, sigma), truncate=3.0) for sigma in BLURS]
    return torch.from_numpy(np.concatenate(blurred)).to(log_odds.device)


@dataclass(frozen=True, eq=False)
class PixelClassifier:
    """Softmax regression on appearance features, with context features if given, and on position features.

    of_seen (C, K + 1) and of_place (P, K + 1): coefficients of background and structures, intercepts last in of_place.
    """

    of_seen: Tensor
    of_place: Tensor

    @classmethod
    def fitted(cls, samples: PixelSamples, context: Tensor | None = None) -> PixelClassifier:
        """Fit a classifier to pixels and, if given, their context (n, D)."""
        weights = samples.weights / samples.weights.sum()
        seen = samples.appearance if context is None else torch.cat([samples.appearance, context], dim=1)
        mean = weights @ seen
        deviation = (weights @ (seen - mean) ** 2).sqrt() + 1e-2
        inputs = torch.cat([(seen - mean) / deviation, _place(samples.position)], dim=1)
        solved = softmax_regression(inputs, samples.shares, weights)
        # The standardization is folded into the coefficients: maps are large, and shared by several classifiers.
        of_seen = solved[: seen.shape[1]] / deviation[:, None]
        of_place = solved[seen.shape[1] :].clone()
        of_place[-1] -= mean @ of_seen
        return cls(of_seen, of_place)

    def log_odds(self, maps: PixelMaps, context: Tensor | None = None) -> Tensor:
        """log(p / (1 - p)) of each structure (K, g, g); context (D, g, g)."""
        channels = len(maps.appearance)
        scores = self.of_seen[:channels].T @ maps.appearance.flatten(1)
        scores += self.of_place.T @ maps.place.T
        if context is not None:
            scores += self.of_seen[channels:].T @ context.flatten(1)
        log_p = F.log_softmax(scores, dim=0)[1:]
        odds = log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))
        return odds.unflatten(1, maps.position.shape[-2:])


class ContextClassifier:
    """First-stage classifiers predict each pixel, and second-stage ones use these predictions as context: a wall is
    what surrounds a cavity (auto-context, Tu and Bai 2010). Each stage is averaged.
    """

    def __init__(self, firsts: Sequence[PixelClassifier], seconds: Sequence[PixelClassifier]) -> None:
        self.firsts, self.seconds = tuple(firsts), tuple(seconds)

    def log_odds(self, maps: PixelMaps) -> Tensor:
        """log(p / (1 - p)) of each structure (K, g, g)."""
        context = context_of(torch.stack([first.log_odds(maps) for first in self.firsts]).mean(0))
        return torch.stack([second.log_odds(maps, context) for second in self.seconds]).mean(0)


def _place(position: Tensor) -> Tensor:
    """Waves and powers of positions (n, 2), ones last."""
    x, y = position.unbind(1)
    powers = torch.stack([x, y, x * x, y * y, x * y, x**3, y**3, x * x * y, x * y * y, torch.ones_like(x)], dim=1)
    directions, phases = _waves(position.device)
    return torch.cat([torch.cos(position @ directions + phases), powers], dim=1)


def _waves(device: torch.device) -> tuple[Tensor, Tensor]:
    """Directions (2, n) and phases (n,) of plane waves, fixed random features (Rahimi and Recht 2007)."""
    generator = torch.Generator().manual_seed(0)
    directions = WAVE_RATE * torch.randn(2, WAVES, generator=generator)
    return directions.to(device), (2 * math.pi * torch.rand(WAVES, generator=generator)).to(device)


def softmax_regression(
    inputs: Tensor, shares: Tensor, weights: Tensor, penalty: float = PENALTY, steps: int = STEPS
) -> Tensor:
    """Coefficients (D, K + 1) that reduce the weighted cross-entropy of shares (n, K + 1) plus penalty / 2 x squared
    norm, after `steps` iterations from zero.

    The Hessian is bounded by a quarter of the weighted covariance of the inputs (n, D) (Boehning 1992); preconditioned
    by that bound, the first step is a linear discriminant analysis, and some tens converge. The inputs' last column,
    ones, is not penalized.
    """
    size = inputs.shape[1]
    free = torch.full((size,), penalty, device=inputs.device)
    free[-1] = 0.0
    bound = 0.25 * inputs.T @ (inputs * weights[:, None]) + penalty * torch.eye(size, device=inputs.device)
    factor = torch.linalg.cholesky(bound)
    back = torch.linalg.solve_triangular(factor, torch.eye(size, device=inputs.device), upper=False).T.contiguous()
    rounded = inputs @ back
    solution = torch.zeros(size, shares.shape[1], device=inputs.device)
    search = torch.optim.LBFGS([solution], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        log_p = F.log_softmax(rounded @ solution, dim=1)
        squares = free[:, None] * (back @ solution)
        solution.grad = rounded.T @ ((log_p.exp() - shares) * weights[:, None]) + back.T @ squares
        return 0.5 * (squares * (back @ solution)).sum() - ((log_p * shares).sum(1) @ weights)

    search.step(closure)
    return back @ solution
