"""Random anatomy-like label maps: the shapes for unlimited pre-training data without patient data.

A `Scene` is painted back to front like a cross-section: body outline or skull, tissue partition, spine, organs with fat
around them, pairs of organs, rings with lumens, hearts, crescents, branching tubes, tumours in layers; then everything
is warped by one smooth deformation, and sometimes cut off by the field of view. Appearance is sampled separately, in
`appearance`, so one scene can be rendered by many "scanners". Slices are generated in 2-D, like the model's input.

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
    """Label map (H, W) uint8 and, per label, its parent label (0 = none) and the first label of its tissue.

    Label 0 is air. Labels of one tissue have the same appearance: both kidneys, the blood in both ventricles.
    """

    labels: NDArray[np.uint8]
    parents: tuple[int, ...]
    tissues: tuple[int, ...]

    def region(self, label: int, *, with_children: bool) -> NDArray[np.bool_]:
        """Pixels of a label, optionally with everything painted inside it (liver including its lesions)."""
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
        self.tissues = [0]
        self.y, self.x = np.mgrid[:size, :size].astype(np.float32)

    def paint(
        self,
        mask: NDArray[np.bool_],
        parent: int = 0,
        inside: NDArray[np.bool_] | None = None,
        like: int | None = None,
    ) -> int:
        """Adds a label, of the tissue of `like` or of a new one, and returns it; 0 when no labels are left."""
        if len(self.parents) >= 250:
            return 0
        if inside is not None:
            mask = mask & inside
        label = len(self.parents)
        self.labels[mask] = label
        self.parents.append(parent)
        self.tissues.append(label if like is None else self.tissues[like])
        return label

    def blob(
        self,
        rng: np.random.Generator,
        centre: tuple[float, float],
        radius: float,
        elongation: float = 0.6,
        roughness: float = 0.0,
    ) -> Array:
        """Signed field, negative inside: a rotated superellipse with a wavy, optionally ragged outline."""
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
        if roughness:
            field += roughness * smooth_field(rng, self.size, max(0.6 * radius, 4.0))
        return field


def draw_scene(rng: np.random.Generator, size: int = 256) -> Scene:
    """A random cross-section of `size` x `size` pixels."""
    canvas = _Canvas(size)
    if rng.random() < 0.15:
        body = _paint_head(canvas, rng)
        painters = {_paint_tumour: 0.45, _paint_organ: 0.25, _paint_cluster: 0.2, _paint_tube: 0.1}
        count = int(rng.integers(1, 8))
    else:
        body = _paint_body(canvas, rng)
        _paint_tissues(canvas, rng, body)
        if rng.random() < 0.35:
            _paint_spine(canvas, rng, body)
        # Radii are log-uniform: adrenals matter as much as livers.
        painters = {
            _paint_organ: 0.45,
            _paint_pair: 0.09,
            _paint_ring: 0.1,
            _paint_tube: 0.1,
            _paint_crescent: 0.06,
            _paint_cluster: 0.07,
            _paint_heart: 0.06,
            _paint_tumour: 0.07,
        }
        count = int(rng.integers(3, 17))
    for number in rng.choice(len(painters), size=count, p=list(painters.values())):
        list(painters)[int(number)](canvas, rng, body)
    labels = _bend(canvas.labels, rng)
    if rng.random() < 0.12:
        labels[~_field_of_view(canvas, rng)] = 0
    return Scene(labels, tuple(canvas.parents), tuple(canvas.tissues))


def _centre(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> tuple[float, float]:
    inside = np.flatnonzero(body)
    where = int(inside[rng.integers(len(inside))]) if len(inside) else canvas.size**2 // 2
    return float(where // canvas.size), float(where % canvas.size)


def _radius(canvas: _Canvas, rng: np.random.Generator, low: float = 0.014, high: float = 0.26) -> float:
    return float(canvas.size * np.exp(rng.uniform(np.log(low), np.log(high))))


def _paint_body(canvas: _Canvas, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Skin outline with layers below; one image in four is a crop without air."""
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


def _paint_head(canvas: _Canvas, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Scalp, skull, fluid, folded grey over white matter, ventricles. Returns the brain mask."""
    size = canvas.size
    centre = size * rng.uniform(0.45, 0.55, 2)
    radius = size * rng.uniform(0.33, 0.52)
    field = canvas.blob(rng, (centre[0], centre[1]), radius, 0.15)
    scalp = canvas.paint(field < 0)
    depth = -rng.uniform(0.03, 0.1)
    skull = canvas.paint(field < depth, scalp)
    depth -= rng.uniform(0.03, 0.1)
    fluid = canvas.paint(field < depth, skull)
    folds = field + rng.uniform(0.02, 0.1) * smooth_field(rng, size, radius * rng.uniform(0.1, 0.3))
    brain = np.asarray(folds < depth - rng.uniform(0.01, 0.05))
    grey = canvas.paint(brain, fluid)
    inward = field + rng.uniform(0.05, 0.2) * smooth_field(rng, size, radius * rng.uniform(0.12, 0.3))
    white = canvas.paint(inward < depth - rng.uniform(0.1, 0.25), grey, brain)
    offset = radius * rng.uniform(0.08, 0.25)
    side = canvas.blob(rng, (centre[0], centre[1] - offset), radius * rng.uniform(0.08, 0.22))
    mirror = np.roll(side[:, ::-1], int(2 * centre[1]) - size, 1)
    one = canvas.paint(side < 0, white, brain, like=fluid)
    canvas.paint(mirror < 0, white, brain, like=one)
    return brain


def _paint_spine(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """A vertebra with cortex and canal near the back, and ribs along the outline."""
    size = canvas.size
    centre = (size * rng.uniform(0.6, 0.8), size * rng.uniform(0.4, 0.6))
    radius = size * rng.uniform(0.03, 0.08)
    body_field = canvas.blob(rng, centre, radius, 0.3)
    cortex = canvas.paint(body_field < 0, 1, body)
    canvas.paint(body_field < -rng.uniform(0.1, 0.4), cortex, body)
    behind = (centre[0] + 1.3 * radius, centre[1])
    canvas.paint(canvas.blob(rng, behind, radius * 0.8, 0.5) < 0, cortex, body, like=cortex)
    canvas.paint(canvas.blob(rng, behind, radius * rng.uniform(0.3, 0.5), 0.2) < 0, 1, body)
    depth = ndimage.distance_transform_edt(np.pad(body, 1))[1:-1, 1:-1]
    level = size * rng.uniform(0.02, 0.07)
    shell = (depth > level) & (depth < level + size * rng.uniform(0.01, 0.03))
    pieces = smooth_field(rng, size, size * rng.uniform(0.08, 0.2)) > rng.uniform(0.3, 1.0)
    canvas.paint(shell & pieces, 1, body, like=cortex)


def _paint_organ(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    centre, radius = _centre(canvas, rng, body), _radius(canvas, rng)
    field = canvas.blob(rng, centre, radius)
    if rng.random() < 0.5:  # fat plane or capsule, one to a few pixels wide
        canvas.paint(field < rng.uniform(0.5, 4) / radius, 1, body)
    mask = (field < 0) & body
    organ = canvas.paint(mask, 1)
    if radius > 0.05 * canvas.size:
        for _ in range(int(rng.integers(0, 4))):  # lesions, vessels in cross-section, calyces
            inner = radius * rng.uniform(0.08, 0.45)
            canvas.paint(canvas.blob(rng, _centre(canvas, rng, mask), inner) < 0, organ, mask)
    if radius > 0.1 * canvas.size and rng.random() < 0.25:  # vessels in longitudinal section
        canvas.paint(_branches(canvas, rng, mask, radius) < radius * rng.uniform(0.02, 0.08), organ, mask)
    if radius > 0.06 * canvas.size and rng.random() < 0.12:  # fluid level: stomach, bowel
        level = (canvas.y - centre[0]) < radius * rng.uniform(-0.5, 0.5)
        canvas.paint(level & (field < -rng.uniform(0.05, 0.2)), organ, mask)


def _paint_pair(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """An organ and its contralateral counterpart: kidneys, lungs, eyes."""
    centre, radius = _centre(canvas, rng, body), _radius(canvas, rng, 0.03, 0.2)
    field = canvas.blob(rng, centre, radius)
    one = canvas.paint(field < 0, 1, body)
    shift = int(canvas.size * rng.normal(0, 0.04))
    other = np.roll(field[:, ::-1], shift, 0) + 0.1 * smooth_field(rng, canvas.size, radius)
    two = canvas.paint(other < 0, 1, body, like=one)
    if rng.random() < 0.4:
        inner = rng.uniform(0.3, 0.7)
        pelvis = canvas.paint(field < -inner, one, body)
        canvas.paint(other < -inner, two, body, like=pelvis)


def _paint_heart(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """Round left ventricle in its myocardium, with a crescent-shaped right ventricle of the same blood next to it."""
    centre, radius = _centre(canvas, rng, body), _radius(canvas, rng, 0.05, 0.18)
    field = canvas.blob(rng, centre, radius, 0.2)
    away = rng.uniform(0, 2 * np.pi)
    shift = radius * rng.uniform(0.6, 1.1)
    beside = (centre[0] + shift * float(np.sin(away)), centre[1] + shift * float(np.cos(away)))
    right = canvas.blob(rng, beside, radius * rng.uniform(0.8, 1.2), 0.4)
    wall = rng.uniform(0.04, 0.2)
    canvas.paint(right < wall, 1, body)
    blood = canvas.paint(right < 0, 1, body)
    muscle = canvas.paint(field < 0, 1, body)
    cavity = -rng.uniform(0.15, 0.55)
    lumen = canvas.paint(field < cavity, muscle, body, like=blood)
    if rng.random() < 0.5:  # papillary muscles
        inner = np.asarray(field < cavity)
        if inner.any():
            spot = canvas.blob(rng, _centre(canvas, rng, inner), radius * rng.uniform(0.06, 0.16)) < 0
            canvas.paint(spot, lumen, inner, like=muscle)


def _paint_tumour(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """Irregular layers: oedema around an enhancing rim around a necrotic core."""
    centre, radius = _centre(canvas, rng, body), _radius(canvas, rng, 0.02, 0.2)
    field = canvas.blob(rng, centre, radius, 0.5, roughness=rng.uniform(0.05, 0.4))
    parent, depth = 1, 0.0
    for _ in range(int(rng.integers(1, 4))):
        parent = canvas.paint(field < depth, parent, body)
        depth -= rng.uniform(0.15, 0.5)


def _paint_ring(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """Wall and lumen: myocardium, bowel, vessel wall, skull."""
    field = canvas.blob(rng, _centre(canvas, rng, body), _radius(canvas, rng, 0.03, 0.3))
    wall = canvas.paint(field < 0, 1, body)
    canvas.paint(field < -rng.uniform(0.12, 0.5), wall, body)


def _paint_crescent(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """A blob with a bite taken out: right ventricle, pancreas head, subdural haematoma."""
    centre, radius = _centre(canvas, rng, body), _radius(canvas, rng, 0.04, 0.22)
    outer = canvas.blob(rng, centre, radius) < 0
    away = rng.uniform(0, 2 * np.pi)
    shift = radius * rng.uniform(0.3, 0.9)
    bite = (centre[0] + shift * float(np.sin(away)), centre[1] + shift * float(np.cos(away)))
    canvas.paint(outer & (canvas.blob(rng, bite, radius * rng.uniform(0.7, 1.1)) > 0), 1, body)


def _paint_tube(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """A winding, branching vessel in longitudinal section."""
    width = canvas.size * np.exp(rng.uniform(np.log(0.004), np.log(0.035)))
    canvas.paint(_branches(canvas, rng, body, canvas.size) < width, 1, body)


def _branches(canvas: _Canvas, rng: np.random.Generator, where: NDArray[np.bool_], length: float) -> Array:
    """Distance in pixels to winding, branching lines that start inside `where`."""
    lines = np.zeros_like(where)
    starts = [(*_centre(canvas, rng, where), rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.8) * length)]
    for _ in range(int(rng.integers(1, 6))):
        y, x, heading, reach = starts[int(rng.integers(len(starts)))]
        steps = int(max(reach, 8))
        turns = np.cumsum(rng.normal(0, 0.08, steps)) + heading
        ys, xs = y + np.cumsum(np.sin(turns)), x + np.cumsum(np.cos(turns))
        keep = (ys >= 0) & (xs >= 0) & (ys < canvas.size) & (xs < canvas.size)
        lines[ys[keep].astype(int), xs[keep].astype(int)] = True
        cut = int(rng.integers(steps // 4, steps))
        starts.append((ys[cut], xs[cut], turns[cut] + rng.choice([-0.7, 0.7]), reach * 0.7))
    return np.asarray(ndimage.distance_transform_edt(~lines), np.float32)


def _paint_cluster(canvas: _Canvas, rng: np.random.Generator, body: NDArray[np.bool_]) -> None:
    """Several similar bodies under one label: bowel loops, vertebrae and ribs, scattered lesions."""
    mask = np.zeros_like(body)
    radius = _radius(canvas, rng, 0.012, 0.07)
    for _ in range(int(rng.integers(2, 8))):
        mask |= canvas.blob(rng, _centre(canvas, rng, body), radius * rng.uniform(0.7, 1.3)) < 0
    canvas.paint(mask, 1, body)


def _field_of_view(canvas: _Canvas, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Field-of-view mask: a disc (CT, fundus), a sector (ultrasound) or a strip."""
    size = canvas.size
    kind = rng.random()
    if kind < 0.4:
        centre, radius = size * rng.uniform(0.45, 0.55, 2), size * rng.uniform(0.38, 0.55)
        return np.asarray(np.hypot(canvas.y - centre[0], canvas.x - centre[1]) < radius)
    if kind < 0.7:
        apex_y, apex_x = -size * rng.uniform(0.02, 0.3), size * rng.uniform(0.4, 0.6)
        angle = np.abs(np.arctan2(canvas.x - apex_x, canvas.y - apex_y))
        far = np.hypot(canvas.y - apex_y, canvas.x - apex_x)
        return np.asarray((angle < rng.uniform(0.5, 0.9)) & (far < size * rng.uniform(0.9, 1.3)))
    low, high = size * rng.uniform(0, 0.15), size * rng.uniform(0.85, 1)
    along = canvas.y if rng.random() < 0.5 else canvas.x
    return np.asarray((along >= low) & (along < high))


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
