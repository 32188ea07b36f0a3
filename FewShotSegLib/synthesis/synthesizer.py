"""Exemplars -> synthesized training slices (section 2.1 of "Cheap Lunch", Feng et al. 2023), without any network.

Sampling a plan (`Synthesizer.sample`, all randomness) is separate from rendering it (`Synthesizer.apply`,
deterministic), so that samples can be stored, shown, vetoed and reproduced. Three kinds:

- *pasted*, the paper's: every structure is cut out of an annotated slice, transformed about its own centroid and
  painted, larger before smaller, onto a background slice; its position stays roughly the same. Structures inside one
  another move together (`move_together`; our departure): separately, they would show walls without their cavities.
- *original* (our departure): the annotated slice as a whole, transformed. A pasted organ never has its true
  surroundings; with one to three exemplars nothing else shows them to the network.
- *empty* (our departure): a slice declared empty of all structures, transformed, so that absence is learned on real
  images.

Backgrounds. "known_empty" slices are the paper's. A user with one annotated slice has none: "inpaint" then takes the
annotated slice with its structures removed (harmonic fill). "neighbour" takes unlabelled slices next to the annotated
ones. Those may contain any of the structures, so only what was pasted has known labels: `Sample.known` marks the
structures and their rim, and the loss must ignore the rest. It is used only on request.

Rim. `composite="mask"` replaces exactly the label's pixels, and blends a soft rim of the structure's own surroundings
outside them (`rim`, `feather_px`; our departure, 0 turns it off), limited to background pixels of the exemplar. A hard
seam exactly on the label's edge teaches a network to detect seams; the rim moves the seam off the edge, and in
"neighbour" samples it supplies the only reliable background. `composite="paper"` is Eq. 1 verbatim: pixels > 0 after
the transform are structure. Both agree where the structure is > 0 everywhere and interpolation is "nearest".

Backgrounds from the structures' own location (inpaint, neighbour) carry the structures along: half of each range is
drawn for the slice and half for each structure, so that the total stays within the recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.laterality import is_lateralised
from FewShotSegLib.imaging.slices import LabelledSlice

from .inpainting import without_structures
from .pasting import (
    Pasted,
    bordered,
    centre_of,
    content_window,
    cutouts_of,
    displacement,
    grid,
    hidden,
    interpolated,
    moved,
    moving_together,
    paste,
)
from .plan import Placement, Plan, Sample, SynthesisRecipe, Transform

Array = np.ndarray[Any, Any]


class Synthesizer:
    """Samples and renders training slices from annotated slices.

    `structures` maps label values to names. `notes` holds one sentence per remark for the user: a fallback in use,
    mirroring that was disabled, a background that was dropped.
    """

    def __init__(
        self,
        slices: Sequence[LabelledSlice],
        backgrounds: Sequence[LabelledSlice] = (),
        neighbours: Sequence[LabelledSlice] = (),
        recipe: SynthesisRecipe | None = None,
        structures: Mapping[int, str] | None = None,
    ) -> None:
        self.recipe = recipe or SynthesisRecipe()
        self.notes: list[str] = []
        self.slices = [piece for piece in slices if piece.annotated and piece.labels.any()]
        self.backgrounds = self._with_content(backgrounds, "known to be empty")
        self.neighbours = self._with_content(neighbours, "neighbouring")
        self._check_slices()
        values = sorted({int(v) for piece in self.slices for v in np.unique(piece.labels) if v})
        self.structures = {value: (structures or {}).get(value, str(value)) for value in values}
        self.background_kinds = self._background_kinds()
        self.mirrors = self._mirrors()
        self._groups = [self._groups_of(piece) for piece in self.slices]
        self._cutouts = [
            cutouts_of(piece, self.recipe, groups) for piece, groups in zip(self.slices, self._groups, strict=True)
        ]
        self._check_cutouts()
        self._filled: dict[int, Array] = {}
        self._last: tuple[Plan, dict[int, Pasted]] | None = None  # cached from sampling for rendering

    # ------------------------------------------------------------------------------------------------- drawing

    def sample(self, rng: np.random.Generator) -> Plan:
        """Draw the plan of a sample; all its randomness comes from `rng` here."""
        recipe, kind = self.recipe, self._draw_kind(rng)
        exemplar = None if kind == "empty" else int(rng.integers(len(self.slices)))
        background_kind, background = self._draw_background(kind, rng)
        own_place = kind == "pasted" and background_kind in ("inpaint", "neighbour")
        largest_elastic_px = recipe.elastic * self.image_size
        plan = Plan(
            kind=kind,
            exemplar=exemplar,
            background=background,
            background_kind=background_kind,
            sources=self._sources(exemplar, background_kind, background),
            scene=self._draw_transform(rng, share=0.5 if own_place else 1.0),
            elastic_px=float(rng.uniform(0, largest_elastic_px)),
            elastic_seed=int(rng.integers(2**32)),
            gain=float(rng.uniform(*recipe.gain)),
            bias=float(rng.uniform(-recipe.bias, recipe.bias)),
            blur_sigma_px=float(rng.uniform(0, recipe.blur_sigma_px)),
            noise_sd=float(rng.uniform(0, recipe.noise_sd)),
            noise_seed=int(rng.integers(2**32)),
        )
        return self._with_placements(plan, rng) if kind == "pasted" else plan

    def apply(self, plan: Plan) -> Sample:
        """Render the sample of a plan; deterministic, bit for bit."""
        self._check_plan(plan)
        if plan.kind == "pasted":
            image, labels, known = self._pasted(plan)
        else:
            image, labels, known = self._whole(plan)
        image = self._intensities(image, plan)
        return Sample(image, labels, known, self._provenance(plan, labels))

    def draw(self, rng: np.random.Generator) -> Sample:
        """Draw a plan and render it."""
        return self.apply(self.sample(rng))

    def original(self, index: int) -> Sample:
        """Return annotated slice `index` unchanged."""
        return self.apply(Plan("original", index, None, "exemplar", self._sources(index, "exemplar", None)))

    @property
    def image_size(self) -> int:
        """Side S of every sample in pixels."""
        return int(self.slices[0].image.shape[0])

    def _draw_kind(self, rng: np.random.Generator) -> Literal["pasted", "original", "empty"]:
        empty, original = rng.random(2)
        if self.backgrounds and empty < self.recipe.empty_probability:
            return "empty"
        return "original" if original < self.recipe.original_probability else "pasted"

    def _draw_background(self, kind: str, rng: np.random.Generator) -> tuple[Any, int | None]:
        if kind == "original":
            return "exemplar", None
        chosen = "known_empty" if kind == "empty" else str(rng.choice(self.background_kinds))
        if chosen == "inpaint":
            return chosen, None
        return chosen, int(rng.integers(len(self._background_slices(chosen))))

    def _draw_transform(self, rng: np.random.Generator, share: float = 1.0) -> Transform:
        recipe = self.recipe
        low, high = _narrowed(recipe.scale, share)
        largest_deg, largest_shift = recipe.rotation_deg * share, recipe.shift * share
        return Transform(
            scale=float(rng.uniform(low, high)),
            rotation_deg=float(rng.uniform(-largest_deg, largest_deg)),
            shift=(
                float(rng.uniform(-largest_shift, largest_shift)),
                float(rng.uniform(-largest_shift, largest_shift)),
            ),
            mirrored=(rng.random() < 0.5 and self.mirrors[0], rng.random() < 0.5 and self.mirrors[1]),
        )

    def _draw_placement(self, value: int, plan: Plan, rng: np.random.Generator) -> Placement:
        recipe, share = self.recipe, self.recipe.structure_intensity
        transform = self._draw_transform(rng, share=0.5 if _follows(plan) else 1.0)
        if _follows(plan):  # mirrored with the slice, to avoid a half-mirrored patient
            transform = dataclasses.replace(transform, mirrored=(False, False))
        # Where no other background is reliable, there is always a rim to learn the outside of a structure from.
        narrowest = 0.5 * recipe.rim if plan.background_kind == "neighbour" else 0.0
        return Placement(
            value=value,
            transform=transform,
            gain=float(rng.uniform(*_narrowed(recipe.gain, share))),
            bias=float(rng.uniform(-recipe.bias, recipe.bias)) * share,
            rim_px=float(rng.uniform(narrowest, recipe.rim)) * self.image_size,
        )

    def _with_placements(self, plan: Plan, rng: np.random.Generator) -> Plan:
        """Draw the placements, redrawing those with too little visible."""
        assert plan.exemplar is not None
        values = list(self._cutouts[plan.exemplar])
        groups = [[value for value in group if value in values] for group in self._groups[plan.exemplar]]
        groups = [group for group in groups if group]
        chosen = [group for group in groups if rng.random() < self.recipe.keep_structure_probability]
        chosen = chosen or [groups[int(rng.integers(len(groups)))]]
        kept = [value for group in chosen for value in group]
        left_out = tuple(value for value in values if value not in kept)
        placements: dict[int, Placement] = {}
        pasted: dict[int, Pasted] = {}
        redraw, tries = chosen, 0
        while redraw and tries < self.recipe.max_tries:
            for group in redraw:
                drawn = {value: self._draw_placement(value, plan, rng) for value in group}
                together = drawn[group[0]].transform
                placements.update({v: dataclasses.replace(p, transform=together) for v, p in drawn.items()})
            pasted.update(self._paste(plan, [placements[value] for group in redraw for value in group]))
            too_little = hidden(pasted, self.recipe.min_visible, self._content(plan))
            redraw = [group for group in chosen if not set(group).isdisjoint(too_little)]
            tries += 1
        if redraw:
            placements = {v: dataclasses.replace(p, transform=Transform()) for v, p in placements.items()}
            plan = dataclasses.replace(plan, scene=Transform() if _follows(plan) else plan.scene, elastic_px=0.0)
            pasted = self._paste(plan, placements.values())
        # Larger structures first, so that smaller ones are never occluded; the order is part of the plan.
        order = sorted(kept, key=lambda value: (-pasted[value].area, value))
        plan = dataclasses.replace(
            plan,
            placements=tuple(placements[value] for value in order),
            left_out=left_out,
            tries=tries,
            own_places=bool(redraw),
        )
        self._last = plan, pasted
        return plan

    # ------------------------------------------------------------------------------------------------- making

    def _whole(self, plan: Plan) -> tuple[Array, Array, None]:
        piece = self._background(plan)[1]
        rows, columns = self._scene_coordinates(plan, piece)
        image = interpolated(bordered([piece.image]), rows, columns, self.recipe.interpolation)[0]
        labels = interpolated(bordered([piece.labels]), rows, columns, "nearest")[0].astype(np.int32)
        return self._clipped(plan, image), self._clipped(plan, labels), None

    def _pasted(self, plan: Plan) -> tuple[Array, Array, Array | None]:
        """Paint the rims, then the structures, on the background."""
        image = self._transformed_background(plan)
        labels = np.zeros(image.shape, np.int32)
        known = np.zeros(image.shape, bool) if plan.background_kind == "neighbour" else None
        last = self._last
        pasted = last[1] if last and last[0] == plan else self._paste(plan, plan.placements)
        for placement in plan.placements:
            cut = pasted[placement.value]
            image[cut.window] += cut.opacity * (cut.image - image[cut.window])
            if known is not None:
                known[cut.window] |= cut.opacity == 1
        for placement in plan.placements:
            cut = pasted[placement.value]
            image[cut.window][cut.mask] = cut.image[cut.mask]
            labels[cut.window][cut.mask] = placement.value
        return self._clipped(plan, image), self._clipped(plan, labels), known

    def _transformed_background(self, plan: Plan) -> Array:
        pixels, piece = self._background(plan)
        rows, columns = self._scene_coordinates(plan, piece)
        return interpolated(bordered([pixels]), rows, columns, self.recipe.interpolation)[0]

    def _paste(self, plan: Plan, placements: Iterable[Placement]) -> dict[int, Pasted]:
        """Transform the plan's structures, each within its reachable window."""
        assert plan.exemplar is not None
        cutouts, bounds = self._cutouts[plan.exemplar], (plan.elastic_px, self._content(plan))
        coordinates = self._coordinates(plan)
        follow = None
        if _follows(plan):
            follow = plan.scene.inverse(centre_of(self._background(plan, pixels=False)[1]), self.image_size)
        return {
            placement.value: paste(cutouts[placement.value], placement, follow, coordinates, bounds, self.recipe)
            for placement in placements
        }

    def _coordinates(self, plan: Plan) -> tuple[Array, Array]:
        """Return the sampling position of each output pixel before any transform: identity, or elastic displacement."""
        rows, columns = grid(self.image_size)
        if plan.elastic_px <= 0:
            return rows, columns
        down, right = displacement(plan.elastic_seed, plan.elastic_px, self.image_size)
        return rows + down, columns + right

    def _scene_coordinates(self, plan: Plan, piece: LabelledSlice) -> tuple[Array, Array]:
        """Return the sampling position of each output pixel in the background or the whole slice."""
        matrix, offset = plan.scene.inverse(centre_of(piece), self.image_size)
        return moved(matrix, offset, *self._coordinates(plan))

    def _intensities(self, image: Array, plan: Plan) -> Array:
        if plan.blur_sigma_px > 0.2:  # a smaller one has neighbour weights below 4e-6
            image = ndimage.gaussian_filter(image, plan.blur_sigma_px, truncate=3.0)
        image = image * np.float32(plan.gain) + np.float32(plan.bias)
        if plan.noise_sd > 0:
            rng = np.random.default_rng(plan.noise_seed)
            image += np.float32(plan.noise_sd) * rng.standard_normal(image.shape, dtype=np.float32)
        return self._clipped(plan, np.clip(image, 0.0, 1.0, out=image))

    def _clipped(self, plan: Plan, array: Array) -> Array:
        """Keep the padding zero, as in every network input."""
        h, w = self._content(plan)
        array[h:] = 0
        array[:, w:] = 0
        return array

    def _provenance(self, plan: Plan, labels: Array) -> dict[str, Any]:
        counts = np.bincount(labels.ravel(), minlength=max(self.structures) + 1)
        areas = {name: int(counts[value]) for value, name in self.structures.items() if counts[value]}
        remarks = []
        if plan.background_kind == "inpaint":
            remarks.append("background inpainted: no slice known to be empty was used")
        if plan.background_kind == "neighbour":
            remarks.append("background unlabelled: only the structures and their rims are known")
        if plan.own_places:
            remarks.append("no draw kept every structure visible: structures left in their own places")
        names = {str(value): name for value, name in self.structures.items()}
        return {"plan": plan.to_dict(), "structures": names, "area_px": areas, "remarks": remarks}

    # ------------------------------------------------------------------------------------------------- inputs

    def _background_slices(self, kind: str) -> list[LabelledSlice]:
        return self.neighbours if kind == "neighbour" else self.backgrounds

    def _background(self, plan: Plan, *, pixels: bool = True) -> tuple[Array, LabelledSlice]:
        """Return the background pixels, and the slice they come from."""
        if plan.background is not None:
            piece = self._background_slices(plan.background_kind)[plan.background]
            return piece.image, piece
        assert plan.exemplar is not None
        piece = self.slices[plan.exemplar]
        if plan.background_kind != "inpaint" or not pixels:
            return piece.image, piece
        if plan.exemplar not in self._filled:
            self._filled[plan.exemplar] = without_structures(piece)
        return self._filled[plan.exemplar], piece

    def _content(self, plan: Plan) -> tuple[int, int]:
        """Return the content size (h, w) of the sample, from the exemplar's frame."""
        if plan.exemplar is not None:
            return self.slices[plan.exemplar].frame.content
        return self._background(plan)[1].frame.content

    def _sources(self, exemplar: int | None, kind: str, background: int | None) -> tuple[str, ...]:
        used = [] if exemplar is None else [self.slices[exemplar].source]
        return (*used, *([] if background is None else [self._background_slices(kind)[background].source]))

    def _check_plan(self, plan: Plan) -> None:
        try:
            sources = self._sources(plan.exemplar, plan.background_kind, plan.background)
        except IndexError:
            sources = ()
        if sources != plan.sources:
            raise InputError(f"This sample was drawn from other slices ({', '.join(plan.sources)}); draw it again.")

    def _with_content(self, pieces: Sequence[LabelledSlice], what: str) -> list[LabelledSlice]:
        """Drop constant slices: structures on plain black are not informative."""
        kept = [piece for piece in pieces if np.ptp(piece.image[content_window(piece)]) > 0]
        if len(kept) < len(pieces):
            self.notes.append(
                f"{len(pieces) - len(kept)} of {len(pieces)} {what} slices are constant and are not used."
            )
        return kept

    def _check_slices(self) -> None:
        if not self.slices:
            raise InputError(
                "No annotated slice holds a structure, so there is nothing to synthesize from; annotate one."
            )
        shapes = {piece.image.shape for piece in (*self.slices, *self.backgrounds, *self.neighbours)}
        if len(shapes) > 1:
            raise InputError(f"All slices must have the same image size, got {sorted(shapes)}.")
        for piece in self.backgrounds:
            if not piece.annotated or piece.labels.any():
                raise InputError(f"{piece.source} cannot be a background known to be empty: it is unknown or labelled.")

    def _check_cutouts(self) -> None:
        for piece, cutouts in zip(self.slices, self._cutouts, strict=True):
            black = [self.structures[int(v)] for v in np.unique(piece.labels) if v and int(v) not in cutouts]
            if black and not cutouts:
                raise InputError(f'{piece.source}: its structures are all black, composite="paper" cannot paste them.')
            if black:
                self.notes.append(f"{piece.source}: {', '.join(black)} is black and cannot be pasted as in the paper.")

    def _groups_of(self, piece: LabelledSlice) -> list[tuple[int, ...]]:
        if self.recipe.move_together:
            return moving_together(piece.labels)
        return [(int(value),) for value in np.unique(piece.labels) if value]

    def _background_kinds(self) -> tuple[str, ...]:
        wanted, empty = self.recipe.background, bool(self.backgrounds)
        if wanted == "known_empty" and not empty:
            raise InputError('background="known_empty" needs slices without structures; name one or choose "auto".')
        if wanted == "neighbour" and not self.neighbours:
            raise InputError('background="neighbour" needs unlabelled slices beside the annotated ones; choose "auto".')
        if wanted in ("auto", "mixed") and not empty:
            self.notes.append("No slice is known to be empty: structures are pasted on their own slice, inpainted.")
            return ("inpaint",)
        return {"auto": ("known_empty",), "mixed": ("known_empty", "inpaint")}.get(wanted, (wanted,))

    def _mirrors(self) -> tuple[bool, bool]:
        """Return whether rows and columns may be mirrored."""
        flip = self.recipe.flip
        sided = [name for name in self.structures.values() if is_lateralised(name)]
        if flip != "never" and sided:
            self.notes.append(f'Nothing is mirrored although flip="{flip}": {", ".join(sided)} is named by its side.')
            return False, False
        return flip in ("vertical", "both"), flip in ("horizontal", "both")


class AnnotatedSlices(Synthesizer):
    """The annotated slices unchanged, drawn uniformly, for training without synthesis."""

    def __init__(
        self, slices: Sequence[LabelledSlice], recipe: SynthesisRecipe, structures: Mapping[int, str] | None = None
    ) -> None:
        # With the settings of pasting that refuse nothing: structures that are black may not be pasted, but are shown.
        shown = dataclasses.replace(recipe, flip="never", background="inpaint", composite="mask")
        super().__init__(slices, (), (), shown, structures)
        self.notes.clear()  # nothing is pasted, so the remarks do not apply

    def sample(self, rng: np.random.Generator) -> Plan:
        """Draw one of the slices."""
        index = int(rng.integers(len(self.slices)))
        return Plan("original", index, None, "exemplar", self._sources(index, "exemplar", None))


def _narrowed(limits: tuple[float, float], share: float) -> tuple[float, float]:
    """Return a range of factors narrowed towards 1."""
    return 1 + (limits[0] - 1) * share, 1 + (limits[1] - 1) * share


def _follows(plan: Plan) -> bool:
    """Return whether the background is the structures' own location, so that they move along with it."""
    return plan.background_kind in ("inpaint", "neighbour")


# ------------------------------------------------------------------------------------------------- JSON
