"""Synthetic patients: an upper abdomen as CT or MR would show it, with exact labels. For the demo and for tests.

A patient is painted back to front from simple shapes (ellipsoids, tubes, layers) whose coordinates are warped by one
smooth random deformation, so that no two patients are alike. Organs are close in intensity to each other and to bowel:
a model that only follows edges has trouble, one that has seen a few examples has not. numpy and scipy only; no patient
data are used. Sizes and Hounsfield values are those of textbook anatomy.

Anatomical millimetres: x to the patient's left, y to posterior, z to superior, origin at the centre of the body at
about the first lumbar vertebra. Arrays are (K, J, I) with i along x, j along y, k along z, the order of an axial CT
series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError

Modality = Literal["ct", "mr"]
Field = NDArray[np.float32]
Point = tuple[float, float, float]
Box = tuple[slice, slice, slice]

STRUCTURES = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen", 5: "aorta"}
LIVER, RIGHT_KIDNEY, LEFT_KIDNEY, SPLEEN, AORTA = STRUCTURES


@dataclass(frozen=True)
class _Tissue:
    """Mean and between-patient SD: CT in HU (portal venous phase), MR like T2 with fat suppression."""

    hu: float
    hu_sd: float
    mr: float
    mr_sd: float


TISSUES = {
    "air": _Tissue(-1000, 0, 6, 2),
    "couch": _Tissue(-250, 30, 6, 2),
    "skin": _Tissue(20, 8, 120, 15),
    "fat": _Tissue(-104, 5, 75, 15),
    "visceral fat": _Tissue(-96, 6, 85, 15),
    "muscle": _Tissue(58, 5, 95, 12),
    "lung": _Tissue(-840, 30, 25, 6),
    "heart": _Tissue(135, 14, 130, 25),
    "bone cortex": _Tissue(520, 60, 25, 6),
    "bone marrow": _Tissue(190, 30, 120, 25),
    "disc": _Tissue(85, 10, 170, 40),
    "nerve": _Tissue(35, 6, 520, 50),
    "gas": _Tissue(-900, 40, 8, 3),
    "bowel wall": _Tissue(92, 10, 190, 30),
    "water": _Tissue(18, 8, 560, 60),
    "chyme": _Tissue(60, 18, 330, 60),
    "contrast": _Tissue(210, 45, 420, 60),
    "stool": _Tissue(5, 35, 230, 50),
    "liver": _Tissue(108, 9, 150, 20),
    "lesion": _Tissue(60, 12, 290, 50),
    "spleen": _Tissue(120, 8, 300, 35),
    "kidney": _Tissue(140, 12, 360, 35),
    "pancreas": _Tissue(88, 10, 205, 25),
    "gallbladder": _Tissue(12, 5, 640, 60),
    "aorta": _Tissue(152, 14, 45, 12),
    "vein": _Tissue(150, 10, 60, 15),
}
_INDEX = {name: number for number, name in enumerate(TISSUES)}
_BENDING_MM = 4.5  # SD of the deformation; shapes must fit within _REACH_MM
_REACH_MM = 24.0


def cohort(seed: int, n: int, **options: Any) -> list[tuple[Volume, Labelmap]]:
    """Return `n` patients; patient 3 of a seed is the same in every cohort. `options` are passed to `patient`."""
    if n < 1:
        raise InputError(f"A cohort needs at least one patient, got {n}.")
    return [patient(np.random.default_rng(s), **options) for s in np.random.SeedSequence(seed).spawn(n)]


def patient(
    rng: np.random.Generator,
    *,
    shape: tuple[int, int, int] = (40, 160, 160),
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 5.0),
    modality: Modality = "ct",
) -> tuple[Volume, Labelmap]:
    """Return one patient: int16 image (HU for CT, arbitrary units for MR) and uint8 labels of `STRUCTURES`.

    `shape` is (K, J, I), `spacing_mm` is I, J, K. The default field of view of 320 x 320 x 200 mm contains every organ
    completely; a smaller one crops them, a coarser grid shows the same anatomy. Under half a second at the default size
    on one thread.
    """
    if modality not in get_args(Modality):
        raise InputError(f'The modality must be one of {", ".join(get_args(Modality))}, got "{modality}".')
    canvas = _Canvas(rng, shape, spacing_mm)
    _paint_patient(canvas, rng)
    image = (_as_ct if modality == "ct" else _as_mr)(canvas, rng)
    sx, sy, sz = spacing_mm
    affine = np.diag([-sx, -sy, sz, 1.0])  # i and j increase to left and posterior: RAS minus
    affine[:3, 3] = canvas.x[0, 0, 0] * -1, canvas.y[0, 0, 0] * -1, canvas.z[0, 0, 0]
    volume = Volume(image, affine)
    return volume, Labelmap(volume.like(canvas.organ), dict(STRUCTURES))


# ------------------------------------------------------------------------------------------------------------- canvas


@dataclass(frozen=True, eq=False)
class _Region:
    """Voxels of a shape: `inside` (bool) within `box` of the canvas."""

    box: Box
    inside: NDArray[np.bool_]

    def without(self, other: NDArray[np.bool_]) -> _Region:
        return _Region(self.box, self.inside & ~other[self.box])

    def within(self, other: NDArray[np.bool_]) -> _Region:
        return _Region(self.box, self.inside & other[self.box])


class _Canvas:
    """Tissue indices and organ labels under construction, on coordinates warped by a smooth deformation."""

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
    ) -> None:
        if len(shape) != 3 or min(shape) < 1 or len(spacing_mm) != 3 or min(spacing_mm) <= 0:
            raise InputError(f"A phantom needs three sizes and spacings above zero, got {shape} and {spacing_mm}.")
        self.shape, self.spacing_mm = shape, spacing_mm
        centred = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm[::-1], strict=True)]
        self.z, self.y, self.x = (
            axis.astype(np.float32).reshape([-1 if a == d else 1 for a in range(3)]) for d, axis in enumerate(centred)
        )
        self.bx = self.x + _BENDING_MM * self.noise(rng, 110.0)
        self.by = self.y + _BENDING_MM * self.noise(rng, 110.0)
        self.bz = self.z + _BENDING_MM * self.noise(rng, 110.0)
        self.bumps = self.noise(rng, 45.0)  # perturbs every surface
        self.tissue = np.zeros(shape, dtype=np.uint8)
        self.organ = np.zeros(shape, dtype=np.uint8)

    def noise(self, rng: np.random.Generator, wavelength_mm: float) -> Field:
        """Smooth random field (K, J, I) of mean 0 and about unit SD, the same pattern at every resolution."""
        knots = [4 + int(np.ceil(400.0 / wavelength_mm))] * 3
        field = rng.standard_normal(knots).astype(np.float32)
        for d, axis in enumerate((self.z, self.y, self.x)):
            at = 1 + np.clip(axis.ravel() + 200.0, 0.0, 400.0) / 400.0 * (knots[d] - 3)
            field = np.moveaxis(np.tensordot(_spline(at, knots[d]), field, axes=(1, d)), 0, d)
        return np.ascontiguousarray(field) * 3.0  # the spline smooths the knots to an SD of a third

    def box(self, low: Sequence[float], high: Sequence[float]) -> Box:
        """Index slices between two corners (x, y, z), with a margin for the deformation."""
        slices = []
        for axis, a, b in zip((self.z, self.y, self.x), low[::-1], high[::-1], strict=True):
            first, last = np.searchsorted(axis.ravel(), (a - _REACH_MM, b + _REACH_MM))
            slices.append(slice(int(first), int(last)))
        return slices[0], slices[1], slices[2]

    def at(self, box: Box) -> tuple[Field, Field, Field]:
        return self.bx[box], self.by[box], self.bz[box]

    def ball(self, centre: Point, radii: Point, *, turn: Point = (0, 0, 0), uneven: float = 0.06) -> _Region:
        """An ellipsoid, rotated by degrees about x, y and z, its radius perturbed by the fraction `uneven`."""
        reach = max(radii)
        box = self.box([c - reach for c in centre], [c + reach for c in centre])
        offsets = [axis - np.float32(c) for axis, c in zip(self.at(box), centre, strict=True)]
        matrix = (_rotation(turn) / np.array(radii)[:, None]).astype(np.float32)
        u, v, w = (row[0] * offsets[0] + row[1] * offsets[1] + row[2] * offsets[2] for row in matrix)
        return _Region(box, u * u + v * v + w * w < (1 + np.float32(uneven) * self.bumps[box]) ** 2)

    def tube(self, points: Sequence[Point], radii: Sequence[float]) -> _Region:
        """A polyline with a radius at each point."""
        reach = max(radii)
        low, high = np.min(points, axis=0) - reach, np.max(points, axis=0) + reach
        box = self.box(low.tolist(), high.tolist())
        x, y, z = self.at(box)
        inside = np.zeros(x.shape, dtype=bool)
        for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            d = np.subtract(b, a).astype(np.float32)
            share = (x - a[0]) * d[0] + (y - a[1]) * d[1] + (z - a[2]) * d[2]
            share = np.clip(share / max(float(d @ d), 1e-6), 0, 1)
            square = (x - a[0] - share * d[0]) ** 2 + (y - a[1] - share * d[1]) ** 2 + (z - a[2] - share * d[2]) ** 2
            inside |= square < (ra + share * np.float32(rb - ra)) ** 2
        return _Region(box, inside)

    def paint(self, region: _Region, tissue: str, organ: int = 0) -> None:
        self.tissue[region.box][region.inside] = _INDEX[tissue]
        self.organ[region.box][region.inside] = organ

    def fill(self, inside: NDArray[np.bool_], tissue: str) -> None:
        self.tissue[inside] = _INDEX[tissue]

    def mask(self, region: _Region) -> NDArray[np.bool_]:
        """The region as a mask of the whole canvas (K, J, I)."""
        whole = np.zeros(self.shape, dtype=bool)
        whole[region.box] = region.inside
        return whole


def _spline(at: NDArray[Any], knots: int) -> Field:
    """Cubic B-spline weights (positions, knots)."""
    distance = np.abs(at[:, None] - np.arange(knots)[None, :])
    near = (4 - 6 * distance**2 + 3 * distance**3) / 6
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def _rotation(degrees: Point) -> NDArray[np.float64]:
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_z = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


# ------------------------------------------------------------------------------------------------------------ anatomy


def _paint_patient(c: _Canvas, rng: np.random.Generator) -> None:
    """Paint back to front; later shapes cover earlier ones."""
    trunk = _Trunk.draw(c, rng)
    _paint_wall(c, trunk)
    _paint_bowel(c, trunk, rng)
    _paint_stomach(c, trunk, rng)
    _paint_liver(c, trunk, rng)
    _paint_spleen(c, trunk, rng)
    _paint_kidneys(c, trunk, rng)
    _paint_great_vessels(c, rng)
    _paint_spine(c, rng)
    _paint_ribs(c, trunk, rng)


@dataclass(frozen=True, eq=False)
class _Trunk:
    """Layers of the body as nested masks (K, J, I), and the region above the diaphragm."""

    body: NDArray[np.bool_]
    under_skin: NDArray[np.bool_]
    wall: NDArray[np.bool_]
    cavity: NDArray[np.bool_]
    abdomen: NDArray[np.bool_]  # the cavity below the diaphragm
    rib_layer: NDArray[np.bool_]
    half_width: float

    @classmethod
    def draw(cls, c: _Canvas, rng: np.random.Generator) -> _Trunk:
        width, front, back = rng.uniform(132, 148), rng.uniform(96, 112), rng.uniform(98, 106)
        fat = rng.uniform(7, 22)  # at the flanks; the belly has more, the back less
        muscle = rng.uniform(11, 15)

        def layer(depth_side: float, depth_front: float, depth_back: float) -> NDArray[np.bool_]:
            u = np.abs(c.bx) / np.float32(width - depth_side)
            v = np.abs(c.by) / np.where(c.by < 0, np.float32(front - depth_front), np.float32(back - depth_back))
            return u * u * np.sqrt(u) + v * v * np.sqrt(v) < 1  # a superellipse, exponent 2.5

        to_wall = np.array([fat, 1.25 * fat, 0.55 * fat])
        to_cavity = to_wall + muscle * np.array([1.0, 0.8, 1.6])
        cavity = layer(*to_cavity)
        dome = _diaphragm(c, rng)
        return cls(
            body=layer(0, 0, 0),
            under_skin=layer(2.5, 2.5, 2.5),
            wall=layer(*to_wall),
            cavity=cavity,
            abdomen=cavity & (c.bz < dome - 3),
            rib_layer=layer(*(to_cavity - 8)) & ~layer(*(to_cavity - 1)),
            half_width=width,
        )


def _diaphragm(c: _Canvas, rng: np.random.Generator) -> Field:
    """Height in mm of the two domes, which slope to posterior and to the sides."""
    along = ((c.by + 12) / 88) ** 2
    right = rng.uniform(84, 97) - 70 * (((c.bx + 56) / 66) ** 2 + along) ** 2
    left = rng.uniform(78, 90) - 70 * (((c.bx - 58) / 64) ** 2 + along) ** 2
    middle = rng.uniform(72, 80) - 70 * ((c.bx / 60) ** 2 + ((c.by + 34) / 62) ** 2) ** 2  # below the heart
    return np.maximum.reduce([right, left, middle, 10.0 + 0.1 * c.by]).astype(np.float32)


def _paint_wall(c: _Canvas, trunk: _Trunk) -> None:
    bottom = c.y - 112 + (c.x / 260) ** 2 * 90  # a hollow patient table
    c.fill(np.broadcast_to((bottom > 0) & (bottom < 4) & (np.abs(c.x) < 150), c.shape), "couch")
    c.fill(trunk.body, "skin")
    c.fill(trunk.under_skin, "fat")
    c.fill(trunk.wall, "muscle")
    c.fill(trunk.cavity, "visceral fat")
    for side in (-1, 1):
        c.paint(c.tube([(side * 36, 62, -140), (side * 34, 62, 140)], [22, 20]).within(trunk.wall), "muscle")
        c.paint(c.tube([(side * 40, 44, -140), (side * 33, 42, -40), (side * 24, 42, 10)], [21, 16, 7]), "muscle")
        c.paint(c.tube([(side * 66, 58, -140), (side * 58, 62, 0)], [13, 9]).within(trunk.wall), "muscle")
    c.fill(trunk.cavity & ~trunk.abdomen, "muscle")  # the diaphragm, 3 mm; lung fills the rest
    c.fill(trunk.cavity & ~ndimage.binary_dilation(trunk.abdomen, iterations=1), "lung")
    thorax = c.tissue == _INDEX["lung"]
    c.fill(thorax & (np.abs(c.bx - 4) < 24 + 0.1 * np.abs(c.by)), "visceral fat")  # between the lungs
    c.paint(c.ball((20, -46, 104), (56, 40, 42), turn=(0, 12, 0)).within(trunk.cavity).without(trunk.abdomen), "heart")


def _paint_bowel(c: _Canvas, trunk: _Trunk, rng: np.random.Generator) -> None:
    vessels = (
        np.abs(c.noise(rng, 38.0)) + np.abs(c.noise(rng, 38.0)) < 0.19
    )  # two zero level sets intersect along thin curves
    c.fill(vessels & trunk.abdomen & (np.abs(c.bx) < 95), "vein")
    for _ in range(rng.integers(58, 70)):  # small bowel: short bent tubes in the middle and lower belly
        start = np.array([rng.uniform(-80, 84), rng.uniform(-78, 14), rng.uniform(-125, 16)])
        bend = start + rng.uniform(-26, 26, 3)
        end = bend + rng.uniform(-26, 26, 3)
        path = [tuple(start), tuple(bend), tuple(end)]
        _paint_gut(c, trunk, rng, path, rng.uniform(9, 14), ("water", "chyme", "chyme", "contrast"))
    hepatic, splenic = (-84, 2, -42), (86, 6, 2)
    ascending = [(-86, 22, -130), (-88, 18, -80), hepatic]
    descending = [(96, 26, -130), (97, 26, -60), splenic]
    transverse = [hepatic, (-45, -62, -38), (5, -70, -30), (52, -62, -12), splenic]
    for path, radius in ((ascending, 21.0), (descending, 14.0), (transverse, 17.0)):
        jittered = [tuple(np.add(p, rng.normal(0, 4, 3))) for p in path]
        _paint_gut(c, trunk, rng, jittered, radius * rng.uniform(0.85, 1.15), ("stool", "stool", "chyme"))


def _paint_gut(
    c: _Canvas, trunk: _Trunk, rng: np.random.Generator, points: list[Any], radius: float, contents: tuple[str, ...]
) -> None:
    """A loop with its wall and content; gas collects anteriorly, since patients are supine."""
    content, gas_level = rng.choice(contents), rng.normal(-0.75, 0.5)
    radii = [radius * rng.uniform(0.85, 1.15) for _ in points]
    wall = c.tube(points, radii).within(trunk.abdomen)
    lumen = c.tube(points, [r - 2.8 for r in radii]).within(trunk.abdomen)
    c.paint(wall, "bowel wall")
    c.paint(lumen, str(content))
    level = min(p[1] for p in points) + gas_level * radius
    c.paint(_Region(lumen.box, lumen.inside & (c.by[lumen.box] + 3 * c.bumps[lumen.box] < level)), "gas")


def _paint_stomach(c: _Canvas, trunk: _Trunk, rng: np.random.Generator) -> None:
    pancreas = [(-24, -6, -14), (-14, -16, 2), (12, -18, 12), (40, 2, 22), (66, 20, 32)]
    c.paint(c.tube([tuple(np.add(p, rng.normal(0, 2.5, 3))) for p in pancreas], [14, 11, 9, 9, 8]), "pancreas")
    c.paint(c.tube([(-14, -8, 0), (20, -4, 14), (66, 24, 36)], [5.5, 4.5, 4]), "vein")
    path = [(46, 2, 74), (60, -22, 48), (52, -48, 22), (24, -58, 4), (-14, -48, 2)]
    path = [tuple(np.add(p, rng.normal(0, 3, 3))) for p in path]
    size = rng.uniform(0.85, 1.12)
    radii = [r * size for r in (26, 31, 26, 19, 12)]
    wall = c.tube(path, radii).within(trunk.abdomen)
    lumen = c.tube(path, [r - 4.5 for r in radii]).within(trunk.abdomen)
    c.paint(wall, "bowel wall")
    c.paint(lumen, str(rng.choice(("water", "chyme", "chyme", "contrast"))))
    level = np.broadcast_to(c.by < rng.uniform(-62, -42), c.shape)  # fluid levels are flat
    c.paint(lumen.within(level), "gas")


def _paint_liver(c: _Canvas, trunk: _Trunk, rng: np.random.Generator) -> None:
    size = rng.uniform(0.96, 1.15)
    low, high = (-150.0, -110.0, -110.0), (100.0, 100.0, 110.0)
    box = c.box(low, high)
    x, y, z = c.at(box)

    def lobe(centre: Point, radii: Point) -> Field:
        u, v, w = ((axis - p) / (size * r) for axis, p, r in zip((x, y, z), centre, radii, strict=True))
        return u * u + v * v + w * w

    right = lobe((-66, 0, 22), (64, 82, 88))
    left = lobe((rng.uniform(-14, -2), -48, 54), (rng.uniform(62, 78), 36, 42))
    lobes = np.exp(-3 * right) + np.exp(-3 * left) > np.exp(-3.0) * (1 + 0.16 * c.bumps[box])  # smooth union
    # The visceral surface: medially and inferiorly are stomach, bowel and kidney.
    face = (x + 42) * 0.72 + (y - 4) * 0.30 - (z - 18) * 0.62 + 5 * c.bumps[box]
    lobes &= face < 22 + 30 * np.clip((-y - 15) / 40, 0, 1) * np.clip((z - 10) / 40, 0, 1)
    # The right kidney is posterior and inferior.
    lobes &= (y - 30) * 0.8 + (x + 78) * 0.5 - (z - 2) * 0.7 + 4 * c.bumps[box] < 0
    lobes &= (z > -72 + 0.25 * (x + 70)) & ~((x > -22) & (y > -8))  # clear of the spine and great vessels
    liver = _Region(box, lobes).within(trunk.abdomen)
    c.paint(liver, "liver", LIVER)
    whole = c.organ == LIVER
    _paint_liver_vessels(c, whole, rng)
    _paint_lesions(c, whole, rng)
    if rng.random() < 0.85:  # some patients have had it removed
        gallbladder = c.ball((-44, -44, -14), (12, 14, 27 * size), turn=(25, 0, 20))
        c.paint(gallbladder.within(trunk.abdomen), "gallbladder")


def _paint_liver_vessels(c: _Canvas, whole: NDArray[np.bool_], rng: np.random.Generator) -> None:
    hilum, confluence = (-34.0, -8.0, 20.0), (-22.0, 16.0, 70.0)
    portal = [((-58.0, -2.0, 30.0), 5.6), ((-18.0, -36.0, 42.0), 4.6)]
    hepatic = [((-72.0, 18.0, 52.0), 5.2), ((-52.0, -30.0, 58.0), 5.0), ((-10.0, -40.0, 62.0), 4.4)]
    for root, branches in ((hilum, portal), (confluence, hepatic)):
        for end, radius in branches:
            _grow(c, whole, rng, root, np.add(end, rng.normal(0, 5, 3)), radius, depth=3)
    c.paint(c.tube([(-12, -6, -4), hilum], [6.5, 6]), "vein")  # the portal vein itself is outside the liver


def _grow(
    c: _Canvas, whole: NDArray[np.bool_], rng: np.random.Generator, start: Any, end: Any, radius: float, depth: int
) -> None:
    """Paint a vessel and, from its end, two thinner ones: Murray's law, r^3 = 2 r'^3."""
    region = c.tube([tuple(start), tuple(end)], [radius, 0.85 * radius]).within(whole)
    c.paint(region, "vein", LIVER)
    if depth == 0:
        return
    direction = np.subtract(end, start)
    length = float(np.linalg.norm(direction))
    for _ in range(2):
        turned = direction / length + rng.normal(0, 0.55, 3)
        tip = np.add(end, turned / np.linalg.norm(turned) * max(length * 0.72, 14.0))
        _grow(c, whole, rng, end, tip, radius * 0.79, depth - 1)


def _paint_lesions(c: _Canvas, whole: NDArray[np.bool_], rng: np.random.Generator) -> None:
    candidates = np.argwhere(whole)
    if not len(candidates):
        return
    for _ in range(rng.integers(1, 5)):
        k, j, i = candidates[int(rng.random() * len(candidates))]
        centre = (float(c.bx[k, j, i]), float(c.by[k, j, i]), float(c.bz[k, j, i]))
        radius = float(rng.uniform(5, 15))
        radii = (radius * rng.uniform(0.8, 1.2), radius * rng.uniform(0.8, 1.2), radius)
        c.paint(c.ball(centre, radii, uneven=0.12).within(whole), "lesion", LIVER)


def _paint_spleen(c: _Canvas, trunk: _Trunk, rng: np.random.Generator) -> None:
    size = rng.uniform(0.92, 1.16)
    centre = (trunk.half_width - 50 + rng.normal(0, 2), 30 + rng.normal(0, 4), 32 + rng.normal(0, 5))
    outer = c.ball(centre, (32 * size, 54 * size, 54 * size), turn=(28, 0, 24), uneven=0.09)
    hollow = c.ball((centre[0] - 40, centre[1] - 10, centre[2] + 4), (28, 40, 46), turn=(0, 0, 24))
    c.paint(outer.within(trunk.abdomen).without(c.mask(hollow)), "spleen", SPLEEN)


def _paint_kidneys(c: _Canvas, trunk: _Trunk, rng: np.random.Generator) -> None:
    for side, organ, height in ((-1, RIGHT_KIDNEY, -30), (1, LEFT_KIDNEY, -14)):
        x, y, z = side * (60 + rng.normal(0, 3)), 42 + rng.normal(0, 3), height + rng.normal(0, 6)
        size = rng.uniform(0.92, 1.1)
        radii = (27 * size, 24 * size, 53 * size)
        turn = (-12.0, side * -12.0, side * 25.0)
        fat = rng.uniform(2.5, 8)
        around = c.ball((x, y, z), (radii[0] + fat, radii[1] + fat, radii[2] + fat), turn=turn, uneven=0.12)
        c.paint(around.within(trunk.abdomen), "visceral fat")
        hilum = (x - side * 13, y - 7, z)
        c.paint(c.ball((x, y, z), radii, turn=turn, uneven=0.05).within(trunk.wall), "kidney", organ)
        c.paint(c.ball(hilum, (15 * size, 9 * size, 25 * size), turn=turn, uneven=0.25), "visceral fat")
        c.paint(c.ball(hilum, (8, 5, 12), turn=turn, uneven=0.2), "water")
        c.paint(c.tube([(x - side * 9, y - 8, z + 4), (side * 8, 16, z + 14)], [3.2, 4.2]), "vein")


def _paint_great_vessels(c: _Canvas, rng: np.random.Generator) -> None:
    sway = rng.normal(0, 3, 2)
    radius = rng.uniform(9.5, 12.5)
    aorta = [(9, 20, -140), (11 + sway[0], 17, -60), (9 + sway[1], 19, 20), (14, 26, 140)]
    cava: list[Point] = [(-15, 21, -140), (-18, 19, -40), (-20, 14, 20), (-22, 12, 75), (-16, -4, 110)]
    for side in (-1, 1):  # crura of the diaphragm around the aorta
        c.paint(
            c.tube([(side * 12 + 4, 30, -10), (side * 15 + 6, 20, 45), (side * 18 + 8, 8, 80)], [6, 7, 6]), "muscle"
        )
    c.paint(c.tube(cava, [10.5, 11, 12, 13, 12]), "vein")
    c.paint(c.tube([(10, 10, 16), (2, -8, 12), (-2, -18, -6), (4, -26, -90)], [4, 4, 4, 3.5]), "aorta")  # mesenteric
    region = c.tube([tuple(p) for p in aorta], [radius, radius * 1.02, radius * 1.08, radius * 1.15])
    c.paint(region, "aorta", AORTA)
    for angle in rng.uniform(0, 2 * np.pi, rng.integers(0, 3)):  # calcified plaques in the wall, a part of the aorta
        z = rng.uniform(-90, 60)
        spot = (10 + 0.9 * radius * np.cos(angle), 18 + 0.9 * radius * np.sin(angle), z)
        c.paint(c.ball(spot, (3, 3, 6)).within(c.mask(region)), "bone cortex", AORTA)


def _paint_spine(c: _Canvas, rng: np.random.Generator) -> None:
    box = c.box((-48, 20, -200), (48, 110, 200))
    x, y, z = c.at(box)
    period = rng.uniform(33, 38)
    phase = np.mod(z + rng.uniform(0, period), period) / period  # 0..0.24 disc, the rest vertebra
    disc = phase < 0.24
    waist = 1 - 0.10 * np.sin(np.pi * np.clip((phase - 0.24) / 0.76, 0, 1))
    body = np.sqrt((x / 22) ** 2 + ((y - 49) / 17) ** 2) / waist
    inside = (body < 1) & ~((np.abs(x) < 9) & (y > 62))
    arch_level = ~disc & (phase < 0.86)
    ring = np.sqrt((x / 15) ** 2 + ((y - 72) / 13) ** 2)
    canal = np.sqrt((x / 9.5) ** 2 + ((y - 71) / 8) ** 2) < 1
    transverse = arch_level & (phase < 0.60) & (np.abs(y - 68 - 0.12 * np.abs(x)) < 4) & (np.abs(x) < 34)
    spinous = arch_level & (np.abs(x) < 3.6) & (y > 78) & (y < 99) & (phase > 0.3)
    bone = (inside & ~disc) | (arch_level & (ring < 1)) | transverse | spinous
    marrow = (inside & ~disc & (body < 0.89) & (phase > 0.29) & (phase < 0.95)) | ndimage.binary_erosion(spinous)
    for mask, tissue in ((bone, "bone cortex"), (marrow, "bone marrow"), (inside & disc, "disc"), (canal, "nerve")):
        c.paint(_Region(box, mask), tissue)


def _paint_ribs(c: _Canvas, trunk: _Trunk, rng: np.random.Generator) -> None:
    """Ribs are in the wall and slope down anteriorly; below the costal margin there are none."""
    period = rng.uniform(24, 28)
    along = np.mod(c.bz + 0.45 * np.abs(c.bx) - 0.42 * c.by + rng.uniform(0, period), period)
    margin = np.where(c.by < 0, 10 - 1.05 * c.by, 10 - 0.75 * c.by)
    rib = trunk.rib_layer & (along < 11) & (c.bz > margin) & (np.abs(c.bx) > 30)
    c.fill(rib, "bone cortex")
    c.fill(rib & (along > 3) & (along < 8) & ndimage.binary_erosion(trunk.rib_layer), "bone marrow")


# -------------------------------------------------------------------------------------------------------------- image


def _as_ct(c: _Canvas, rng: np.random.Generator) -> NDArray[np.int16]:
    """HU: patient-specific mean of each tissue, texture, partial volume, slow drift and correlated noise."""
    means = np.array([t.hu + t.hu_sd * rng.normal() for t in TISSUES.values()], dtype=np.float32)
    image = means[c.tissue]
    image += c.noise(rng, 16.0) * _textures(hu=True)[c.tissue]
    image = ndimage.gaussian_filter(image, (0.42, 0.62, 0.62), mode="nearest")
    image += 4.0 * c.noise(rng, 200.0)
    image += _grain(c, rng) * np.float32(rng.uniform(11.0, 19.0))
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def _as_mr(c: _Canvas, rng: np.random.Generator) -> NDArray[np.int16]:
    """Arbitrary units: other contrasts, a receive-coil field of +-35 %, noise of a magnitude image (Rician)."""
    means = np.array([t.mr + t.mr_sd * rng.normal() for t in TISSUES.values()], dtype=np.float32)
    image = means[c.tissue]
    image += c.noise(rng, 16.0) * _textures(hu=False)[c.tissue]
    image = ndimage.gaussian_filter(image, (0.42, 0.62, 0.62), mode="nearest")
    image *= np.exp(np.float32(0.22) * c.noise(rng, 190.0))
    sigma = np.float32(rng.uniform(9.0, 15.0))
    first, second = (sigma * rng.standard_normal(c.shape, dtype=np.float32) for _ in range(2))
    gain = rng.uniform(0.8, 2.2)
    return np.clip(np.rint(gain * np.hypot(image + first, second)), 0, 32767).astype(np.int16)


def _textures(*, hu: bool) -> Field:
    """SD within a tissue; bowel content and marrow are heterogeneous, organs nearly homogeneous."""
    mottled = {"stool": 70, "chyme": 22, "bone marrow": 35, "visceral fat": 9, "muscle": 7, "lung": 25, "heart": 14}
    scale = 1.0 if hu else 0.9
    return np.array([scale * mottled.get(name, 4) for name in TISSUES], dtype=np.float32)


def _grain(c: _Canvas, rng: np.random.Generator) -> Field:
    """Noise (K, J, I) of unit SD, correlated in-plane as by a reconstruction kernel."""
    white = rng.standard_normal(c.shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, (0.0, 0.6, 0.6), mode="wrap")
    return smooth / max(float(smooth.std()), 1e-6)
