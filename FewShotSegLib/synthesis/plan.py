"""The plan of a synthesized sample: all random choices, made before rendering, so that it can be stored and replayed.

`SynthesisRecipe` holds the options, `Plan` the choices of one sample, `Sample` the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from FewShotSegLib.data.recipe import check, option
from FewShotSegLib.data.schema import construct, to_json
from FewShotSegLib.errors import InputError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Transform:
    """Mirror, rotate and scale about a centre, then translate (down, right), as a fraction of the image size."""

    scale: float = 1.0
    rotation_deg: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    mirrored: tuple[bool, bool] = (False, False)
    """Whether rows (up-down) and columns (left-right) are mirrored."""

    def inverse(self, centre: Array, image_size: int) -> tuple[Array, Array]:
        """Return (A, b) with `source = A @ output + b` in (row, column) pixels; angles are from rows to columns."""
        angle = np.deg2rad(self.rotation_deg)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        mirror = np.diag([-1.0 if mirrored else 1.0 for mirrored in self.mirrored])
        matrix = mirror @ turn.T / self.scale
        return matrix, centre - matrix @ (centre + np.array(self.shift) * image_size)


@dataclass(frozen=True)
class Placement:
    """How one structure is pasted."""

    value: int
    transform: Transform
    gain: float = 1.0
    bias: float = 0.0
    rim_px: float = 0.0


@dataclass(frozen=True)
class SynthesisRecipe:
    """Synthesis of training samples. The paper names the transforms but not their ranges; these are ours."""

    scale: tuple[float, float] = option((0.8, 1.2), "Range of the scaling factor", min=0.1, max=10.0)
    rotation_deg: float = option(
        15.0, "Maximum rotation in degrees, in both directions; 180 suits tumours", min=0.0, max=180.0
    )
    shift: float = option(0.05, "Maximum translation, as a fraction of the field of view", min=0.0, max=0.5)
    # Above 0.05 the displacement field could fold; see `displacement`.
    elastic: float = option(0.01, "Maximum elastic displacement, as a fraction of the field of view", min=0.0, max=0.05)
    flip: Literal["never", "horizontal", "vertical", "both"] = option(
        "never", "Flipping; never applied where a structure is named left or right"
    )
    gain: tuple[float, float] = option((0.9, 1.1), "Range of the intensity gain", min=0.0, max=10.0)
    bias: float = option(0.1, "Maximum intensity offset, on a scale of 0 to 1", min=0.0, max=1.0)
    # 1 is the paper's. In a 400 HU window, +-0.1 is 40 HU, more than the contrast between liver and spleen.
    structure_intensity: float = option(
        0.3, "Fraction of gain and offset that is drawn per structure", min=0.0, max=1.0, advanced=True
    )
    blur_sigma_px: float = option(1.0, "Maximum Gaussian blur (sigma in pixels)", min=0.0, max=10.0)
    noise_sd: float = option(0.02, "Maximum standard deviation of the noise, on a scale of 0 to 1", min=0.0, max=1.0)
    composite: Literal["mask", "paper"] = option("mask", "What is pasted: the label's pixels, or those above 0 (Eq. 1)")
    interpolation: Literal["linear", "nearest"] = option("linear", "Interpolation of transformed images", advanced=True)
    rim: float = option(
        0.03,
        "Maximum margin of original context pasted with a structure, as a fraction of the field of view",
        min=0.0,
        max=0.2,
    )
    feather_px: float = option(
        1.5, "Width over which that margin is blended (pixels)", min=0.0, max=20.0, advanced=True
    )
    background: Literal["auto", "known_empty", "inpaint", "mixed", "neighbour"] = option(
        "auto", "What structures are pasted on; auto: slices known to be empty, or inpainted where there are none"
    )
    original_probability: float = option(0.5, "Fraction of samples that are whole annotated slices", min=0.0, max=1.0)
    empty_probability: float = option(
        0.1, "Fraction of samples without any structure, where such slices exist", min=0.0, max=1.0
    )
    move_together: bool = option(
        True, "Move structures that lie inside one another, such as a wall and its cavity, as one piece", advanced=True
    )
    keep_structure_probability: float = option(0.9, "Probability that a structure is pasted", min=0.0, max=1.0)
    min_visible: float = option(0.5, "Minimum visible fraction of each pasted structure", min=0.0, max=0.9)
    max_tries: int = option(
        10, "Attempts before structures keep their original positions", min=1, max=1000, advanced=True
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("scale", "gain"):
            low, high = getattr(self, name)
            if low > high:
                raise InputError(
                    f'Recipe option "{name}" must be the smaller, then the larger number, got {low}, {high}.'
                )


@dataclass(frozen=True)
class Plan:
    """All random choices of one sample; a JSON round trip gives the same sample."""

    kind: Literal["pasted", "original", "empty"]
    exemplar: int | None
    """Index of the annotated slice; None for an empty sample."""
    background: int | None
    """Index among the slices of `background_kind`; None if the exemplar is its own background."""
    background_kind: Literal["exemplar", "known_empty", "inpaint", "neighbour"]
    sources: tuple[str, ...]
    """Names of the slices used, so that a plan cannot be applied to other slices by mistake."""
    scene: Transform = field(default_factory=Transform)
    """Transform of the background or of the whole slice, about the centre of the content."""
    placements: tuple[Placement, ...] = ()
    left_out: tuple[int, ...] = ()
    elastic_px: float = 0.0
    elastic_seed: int = 0
    gain: float = 1.0
    bias: float = 0.0
    blur_sigma_px: float = 0.0
    noise_sd: float = 0.0
    noise_seed: int = 0
    tries: int = 1
    own_places: bool = False
    """No draw kept enough of every structure visible, so they were pasted in their original place."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        return dict(to_json(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Return the plan from the output of `to_dict`."""
        return construct(cls, values, "plan entry")


@dataclass(frozen=True, eq=False)
class Sample:
    """One training slice."""

    image: Array = field(repr=False)
    """(S, S) float32 in [0, 1]; padding is 0."""
    labels: Array = field(repr=False)
    """(S, S) int32."""
    known: Array | None = field(repr=False)
    """(S, S) bool, where `labels` are reliable, None for everywhere. The loss must ignore the rest."""
    provenance: dict[str, Any]
    """JSON: the plan, the pixels of each structure, and remarks where a fallback was used."""
