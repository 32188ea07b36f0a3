"""3-D patches: cropped from cases and augmented for training, and stitched together for prediction.

Patches, cases and the pool of auxiliary data share one `Grid`: orientation, spacing and patch size. Arrays are
(D, H, W) along the grid's k, j, i. Drawing augmentation parameters (`Change`) is separate from applying them, as in
`synthesis`.

Unknown is not background: an exemplar may be annotated on some slices only. `Patch.known` marks the voxels that enter
the loss, and patches are drawn around them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.recipe import check, option
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.grid import Grid, onto_grid
from FewShotSegLib.imaging.laterality import is_lateralised
from FewShotSegLib.inference.sliding_window import foreground_logit

from . import data_parallel
from .losses import soft_dice_loss

Array = NDArray[Any]

_MOST_PLACES = 100_000  # candidate centre voxels per case, evenly spread
_UNKNOWN = 2
_POINTS = (3, 5, 5)  # control points of the elastic deformation of a patch, along D, H and W
_FARTHEST = 2.0  # truncation of their displacement, in standard deviations


@dataclass(frozen=True)
class PatchRecipe:
    """Sampling and augmentation of patches, unspecified in the papers. nnU-Net's ranges, narrower for few shots."""

    foreground: float = option(0.7, "Fraction of patches centred on the structure", min=0.0, max=1.0)
    change_probability: float = option(
        0.8, "Probability of a spatial, and of an intensity, augmentation", min=0.0, max=1.0
    )
    rotation_deg: float = option(15.0, "Maximum in-plane rotation, in both directions", min=0.0, max=180.0)
    tilt_deg: float = option(5.0, "Maximum out-of-plane rotation, in both directions", min=0.0, max=90.0)
    elastic_mm: float = option(
        0.0, "Standard deviation of a smooth random displacement; 0: none", min=0.0, max=100.0, advanced=True
    )
    scale: tuple[float, float] = option((0.8, 1.25), "Range of the scaling factor", min=0.1, max=10.0)
    flip: Literal["never", "not_sideways", "all"] = option(
        "never", "Flipping along the axes; never left-right where a structure is named left or right"
    )
    gain: tuple[float, float] = option((0.8, 1.2), "Range of the intensity gain", min=0.0, max=10.0)
    bias: float = option(0.1, "Maximum intensity offset, on a scale of 0 to 1", min=0.0, max=1.0)
    gamma: tuple[float, float] = option((0.75, 1.33), "Range of the intensity exponent (gamma)", min=0.1, max=10.0)
    blur_sigma_px: float = option(0.7, "Maximum in-plane Gaussian blur (sigma in pixels)", min=0.0, max=10.0)
    noise_sd: float = option(0.03, "Maximum standard deviation of the noise, on a scale of 0 to 1", min=0.0, max=1.0)

    def __post_init__(self) -> None:
        check(self)
        for name in ("scale", "gain", "gamma"):
            low, high = getattr(self, name)
            if low > high:
                raise InputError(
                    f'Recipe option "{name}" must be the smaller, then the larger number, got {low}, {high}.'
                )

    def unshaded(self) -> PatchRecipe:
        """The same spatial augmentation without intensity changes: an offset would brighten edge images."""
        return replace(self, gain=(1.0, 1.0), bias=0.0, gamma=(1.0, 1.0), blur_sigma_px=0.0, noise_sd=0.0)


@dataclass(frozen=True)
class Change:
    """Augmentation parameters of one patch, except its location; the default is the identity."""

    angles_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Rotations about D, then H, then W; positive from H to W, from W to D, from D to H."""
    scale: float = 1.0
    mirrored: tuple[bool, bool, bool] = (False, False, False)
    gain: float = 1.0
    bias: float = 0.0
    gamma: float = 1.0
    blur_sigma_px: float = 0.0
    noise_sd: float = 0.0
    noise_seed: int = 0
    elastic_mm: float = 0.0
    elastic_seed: int = 0

    @property
    def moves(self) -> bool:
        """Whether it has a spatial part."""
        return any(self.angles_deg) or self.scale != 1.0 or any(self.mirrored) or self.elastic_mm > 0


@dataclass(frozen=True, eq=False)
class Case:
    """A labelled image on the grid.

    image (D, H, W) float32 in [0, 1], or uint16 where 65535 stands for 1; mask (D, H, W) bool of one structure, or
    uint8 labels of several; known (D, H, W) bool, None for all of it.
    """

    image: Array
    mask: Array
    known: Array | None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Along i, j and k."""
    name: str = ""

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.image, self.mask, self.known) if array is not None}
        if len(shapes) != 1 or self.image.ndim != 3:
            raise InputError(f"{self.name or 'A case'}: image, mask and known differ in shape, {sorted(shapes)}.")


@dataclass(frozen=True, eq=False)
class Patch:
    """A training patch: image float32, mask bool (or labels int64) and known bool, each (D, H, W)."""

    image: Tensor
    mask: Tensor
    known: Tensor


def case_of(exemplar: Exemplar, value: int, grid: Grid, intensity: IntensitySpec) -> Case:
    """Return one structure of an exemplar on the grid; slices neither annotated nor declared empty are unknown."""
    if value not in exemplar.structures:
        raise InputError(f"{exemplar.name} has no structure with label {value}; it has {dict(exemplar.structures)}.")
    volume = exemplar.volume
    coded = np.full(volume.shape, _UNKNOWN, np.uint8)
    at: list[Any] = [slice(None)] * 3
    at[exemplar.axis] = [*exemplar.annotated_slices, *exemplar.empty_slices]
    coded[tuple(at)] = exemplar.labelmap[tuple(at)] == value
    image = intensity.apply(volume.array, intensity.range_of(volume.array))
    image, coded = onto_grid(image, coded, volume.affine, grid)
    known = coded != _UNKNOWN
    if not known.any():
        raise InputError(
            f"{exemplar.name}: its annotated slices fall between those of the grid, which are "
            f"{grid.spacing_mm[2]:g} mm apart; choose a finer spacing."
        )
    return Case(image, coded == 1, None if known.all() else known, grid.spacing_mm, exemplar.name)


# --------------------------------------------------------------------------------------------------------------- draw


class PatchSource:
    """Draws patches from cases; the same generator gives the same patches.

    `names` are the structures that mirroring must respect, `orientation` the grid's.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        grid: Grid,
        recipe: PatchRecipe | None = None,
        names: Iterable[str] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        if not cases:
            raise InputError("Patches need at least one labelled case.")
        self.cases, self.patch, self.recipe = list(cases), grid.patch, recipe or PatchRecipe()
        self.device = device
        self.mirrors = mirrored_axes(self.recipe.flip, names, grid.orientation)
        # Per label: a liver has a hundred times the voxels of an adrenal gland.
        self._structure = [
            [_places(case.mask == value) for value in np.unique(case.mask) if value] for case in self.cases
        ]
        self._known = [None if case.known is None else _places(case.known) for case in self.cases]

    def draw(self, rng: np.random.Generator) -> Patch:
        """Return a patch, augmented according to the recipe."""
        case, centre = self.place(rng)
        return cut(case, centre, self.patch, self.change(rng), self.device)

    def draw_batch(self, rng: np.random.Generator, count: int) -> list[Patch]:
        """Return `count` patches; in distributed training, this process's shard of them."""
        planned = [(*self.place(rng), self.change(rng)) for _ in range(count * data_parallel.count())]
        return [cut(case, at, self.patch, change, self.device) for case, at, change in data_parallel.own(planned)]

    def change(self, rng: np.random.Generator) -> Change:
        """Draw augmentation parameters according to the recipe, also for patches of another source."""
        return draw_change(self.recipe, self.mirrors, rng)

    def place(self, rng: np.random.Generator) -> tuple[Case, Array]:
        """Return a case and the centre (3,) of a patch in it, in voxels."""
        showing = [at for at, labels in enumerate(self._structure) if labels]
        wanted = rng.random() < self.recipe.foreground and bool(showing)
        at = int(rng.choice(showing)) if wanted else int(rng.integers(len(self.cases)))
        case, patch = self.cases[at], np.array(self.patch)
        labels = self._structure[at]
        label = int(rng.integers(len(labels))) if wanted and len(labels) > 1 else 0
        places = labels[label] if wanted else self._known[at]
        voxel = None if places is None else places[rng.integers(len(places))]
        return case, corner_of(voxel, rng.random(3), case.image.shape, self.patch) + (patch - 1) / 2


def corner_of(voxel: Array | None, shares: Array, size: Sequence[int], patch: Sequence[int]) -> Array:
    """Return the first voxel (3,) of a patch that contains `voxel`, or of one anywhere; `shares` (3,) in [0, 1) are the
    uniform random numbers that decide where.

    The voxel lies in the middle half of the patch, so that the structure is not always centred. Along axes where the
    case is smaller than the patch it is centred, and the first voxel is negative.
    """
    room = np.array(size) - patch
    near = np.floor((0.25 + 0.5 * shares) * np.array(patch))
    corner = np.floor(shares * (room + 1)) if voxel is None else voxel - near
    return np.where(room >= 0, np.clip(corner, 0, np.maximum(room, 0)), -(-room // 2)).astype(np.int64)


def part_at(array: Array, corner: Array, patch: Sequence[int]) -> Array:
    """Return a crop from `corner` on, without resampling, zero-padded where the patch extends beyond the array."""
    part = np.zeros(tuple(patch), array.dtype)
    low, high = np.maximum(corner, 0), np.minimum(corner + np.array(patch), array.shape)
    if (low < high).all():
        inside, seen = (tuple(map(slice, low - shift, high - shift)) for shift in (corner, 0))
        part[inside] = array[seen]
    return part


def _places(mask: Array) -> Array:
    """Voxels (N, 3) of a mask."""
    found = np.flatnonzero(mask)
    return np.stack(np.unravel_index(found[:: len(found) // _MOST_PLACES + 1], mask.shape), axis=1)


def mirrored_axes(flip: str, names: Iterable[str], orientation: str) -> tuple[bool, bool, bool]:
    """Return along which of D, H, W patches may be mirrored; `orientation` is the grid's, of i, j and k.

    >>> mirrored_axes("all", ["liver"], "LPS"), mirrored_axes("all", ["liver", "left kidney"], "LPS")
    ((True, True, True), (True, True, False))
    """
    if flip == "never":
        return False, False, False
    sideways = flip == "all" and not any(is_lateralised(name) for name in names)
    d, h, w = (sideways or letter not in "LR" for letter in reversed(orientation))
    return d, h, w


def draw_change(recipe: PatchRecipe, mirrors: tuple[bool, bool, bool], rng: np.random.Generator) -> Change:
    """Draw augmentation parameters. The number of draws is independent of the recipe, so runs stay comparable."""
    moved, shaded = rng.random(2) < recipe.change_probability
    turns, flips = rng.uniform(-1, 1, 3), rng.random(3) < 0.5
    scale, gain, gamma = (float(rng.uniform(*limits)) for limits in (recipe.scale, recipe.gain, recipe.gamma))
    bias, blur, noise = rng.uniform((-1, 0, 0), 1) * (recipe.bias, recipe.blur_sigma_px, recipe.noise_sd)
    seed = int(rng.integers(2**31))
    d, h, w = (bool(flip and may) for flip, may in zip(flips, mirrors, strict=True))
    change = Change(mirrored=(d, h, w))
    if moved:
        about_d, about_h, about_w = turns * (recipe.rotation_deg, recipe.tilt_deg, recipe.tilt_deg)
        change = replace(change, angles_deg=(float(about_d), float(about_h), float(about_w)), scale=scale)
        change = replace(change, elastic_mm=recipe.elastic_mm, elastic_seed=seed)
    if shaded:
        change = replace(
            change,
            gain=gain,
            gamma=gamma,
            bias=float(bias),
            blur_sigma_px=float(blur),
            noise_sd=float(noise),
            noise_seed=seed,
        )
    return change


# ---------------------------------------------------------------------------------------------------------------- cut


def cut(
    case: Case, centre: Array, patch: Sequence[int], change: Change | None = None, device: torch.device | str = "cpu"
) -> Patch:
    """Return the patch of a case centred at `centre` (3,), in voxels of the case along D, H and W.

    One interpolation for all spatial transforms, linear for the image, nearest for mask and known. Beyond the case the
    padding is black background, as in prediction.
    """
    kind = torch.device(device).type
    # Inside `fit`'s autocast, too, augmentation stays in float32. Elsewhere, as in threads that draw ahead, leaving a
    # block of autocast would clear the cache of casts that the training thread shares.
    enabled = torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if enabled else contextlib.nullcontext():
        return _cut(case, centre, patch, change or Change(), device)


def _cut(case: Case, centre: Array, patch: Sequence[int], change: Change, device: torch.device | str) -> Patch:
    box, centre = _box(case, np.asarray(centre, dtype=np.float64), patch, change)
    # Resample the complement of `known`: beyond the case 0 then means black, background and known.
    unknown = np.zeros(case.image[box].shape, bool) if case.known is None else ~case.known[box]
    layers = case.image[box], case.mask[box], unknown
    corner = centre - (np.array(patch) - 1) / 2
    if change.moves or not np.array_equal(corner, np.rint(corner)):
        at = _coordinates(centre, patch, change, case, unknown.shape).to(device)
        moved = (
            _sampled(layer, at, how) for layer, how in zip(layers, ("bilinear", "nearest", "nearest"), strict=True)
        )
    else:
        parts = (part_at(layer, corner.astype(int), patch).astype(np.float32) for layer in layers)
        moved = (torch.from_numpy(part).to(device) for part in parts)
    image, mask, unseen = moved
    if case.image.dtype == np.uint16:
        image = image / 65535
    labels = mask > 0.5 if case.mask.dtype == np.bool_ else mask.round().long()
    return Patch(_shaded(image, change), labels, unseen < 0.5)


def _sampled(array: Array, at: Tensor, how: str) -> Tensor:
    """The array (d, h, w) at coordinates (1, D, H, W, 3), 0 beyond it."""
    source = torch.from_numpy(np.array(array, np.float32)).to(at.device)
    return F.grid_sample(source[None, None], at, how, padding_mode="zeros", align_corners=False)[0, 0]


def _matrix(change: Change, spacing_mm: Sequence[float]) -> Array:
    """(3, 3) from offsets in the patch to offsets in the case, both in voxels along D, H and W; rotations are in mm
    space.
    """
    matrix = np.eye(3)
    for axis, degrees in enumerate(change.angles_deg):
        angle, (first, second) = np.deg2rad(degrees), ((1, 2), (2, 0), (0, 1))[axis]
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    mm = np.array(spacing_mm)[::-1]
    matrix = matrix @ np.diag(np.where(change.mirrored, -1.0, 1.0)) / change.scale
    return matrix * mm / mm[:, None]


def _box(case: Case, centre: Array, patch: Sequence[int], change: Change) -> tuple[tuple[slice, ...], Array]:
    """Return the part of the case that the patch can cover, and the centre in it."""
    reach = np.abs(_matrix(change, case.spacing_mm)) @ ((np.array(patch) - 1) / 2) + 1
    reach += _FARTHEST * change.elastic_mm / np.array(case.spacing_mm)[::-1]
    size = np.array(case.image.shape)
    low = np.clip(np.floor(centre - reach), 0, size - 1).astype(int)
    high = np.clip(np.ceil(centre + reach) + 1, low + 1, size).astype(int)
    return tuple(slice(first, last) for first, last in zip(low, high, strict=True)), centre - low


def _coordinates(centre: Array, patch: Sequence[int], change: Change, case: Case, sides: Sequence[int]) -> Tensor:
    """(1, D, H, W, 3) sampling position of each patch voxel in `grid_sample` convention: W first, edges at -1 and 1."""
    matrix = _matrix(change, case.spacing_mm)
    matrix[np.array(case.image.shape) == 1] = 0  # a single slice has no depth to sample along
    offsets = [np.arange(size) - (size - 1) / 2 for size in patch]
    at = np.empty((1, *patch, 3), np.float32)
    for axis in range(3):
        d, h, w = (row * offset for row, offset in zip(matrix[axis], offsets, strict=True))
        voxel = centre[axis] + d[:, None, None] + h[:, None] + w
        at[0, ..., 2 - axis] = (2 * voxel + 1) / sides[axis] - 1
    result = torch.from_numpy(at)
    if change.elastic_mm > 0:
        moved = _displacement(change, patch) / torch.tensor(case.spacing_mm)  # (i, j, k), as the last axis
        moved[..., [2 - axis for axis in range(3) if case.image.shape[axis] == 1]] = 0
        result += 2 * moved / torch.tensor(list(reversed(sides)))
    return result


def _displacement(change: Change, patch: Sequence[int]) -> Tensor:
    """(1, D, H, W, 3) in mm along i, j and k: random at control points, smooth in between."""
    rng = np.random.default_rng([change.elastic_seed, 1])
    points = np.clip(rng.standard_normal((1, 3, *_POINTS), dtype=np.float32), -_FARTHEST, _FARTHEST)
    field = F.interpolate(torch.from_numpy(points), tuple(patch), mode="trilinear", align_corners=True)
    return change.elastic_mm * field.permute(0, 2, 3, 4, 1)


def _shaded(image: Tensor, change: Change) -> Tensor:
    """Intensity augmentation, clipped to [0, 1]."""
    if (change.gamma, change.gain, change.bias) != (1.0, 1.0, 0.0):
        image = image.clamp(0, 1) ** change.gamma * change.gain + change.bias
    if change.blur_sigma_px > 0:
        from monai.networks.layers import GaussianFilter  # takes seconds; 3-D networks import it anyway

        image = GaussianFilter(2, change.blur_sigma_px).to(image.device)(image[:, None])[:, 0]
    if change.noise_sd > 0:
        noise = np.random.default_rng(change.noise_seed).standard_normal(tuple(image.shape), dtype=np.float32)
        image = image + change.noise_sd * torch.from_numpy(noise).to(image.device)
    return image.clamp(0, 1)


# --------------------------------------------------------------------------------------------------------------- loss


def patch_loss(logits: Tensor, mask: Tensor, known: Tensor | None = None) -> Tensor:
    """Dice + cross-entropy of the structure per patch, (B, C, D, H, W) and (B, D, H, W) -> (B,), over known voxels.

    MONAI's `DiceCELoss` without background where everything is known; 0 where nothing is.
    """
    logit = foreground_logit(logits).float()
    counted = torch.ones_like(logit) if known is None else known.to(logit.dtype)
    target = mask.to(logit.dtype)
    dice = soft_dice_loss(*((x * counted).flatten(2) for x in (torch.sigmoid(logit), target)), smooth=1e-5)
    entropy = F.binary_cross_entropy_with_logits(logit, target, reduction="none") * counted
    voxels = counted.flatten(1).sum(1)
    return (dice + entropy.flatten(1).sum(1) / voxels.clamp(min=1)) * (voxels > 0)


# ------------------------------------------------------------------------------------------------------------ predict
