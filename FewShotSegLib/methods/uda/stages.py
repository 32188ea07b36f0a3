"""The stages of the method in order, each cached under a digest of all that it depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from FewShotSegLib.data.digests import sha256_of_array, sha256_of_json
from FewShotSegLib.data.intensity import PERCENTILES, IntensitySpec
from FewShotSegLib.data.recipe import to_dict
from FewShotSegLib.data.structures import structure_colors
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.devices import patch_precision
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.anatomy_space import AnatomySpace
from FewShotSegLib.imaging.grid import Grid, image_onto_grid, labels_onto_grid
from FewShotSegLib.inference.volume_network import grid_to_dict, on_grid
from FewShotSegLib.io.cache import is_sealed, sealed
from FewShotSegLib.io.datasets import DataSet, complete_exemplar
from FewShotSegLib.io.places import cache_folder
from FewShotSegLib.progress import Progress, Report, stage_picture
from FewShotSegLib.synthesis.plan import Sample
from FewShotSegLib.training.patches import Case, PatchSource
from FewShotSegLib.training.preview import shown_slice
from FewShotSegLib.visualization.overlays import outlined

from .cycle_gan import TRANSLATION_PRESETS as TRANSLATIONS
from .cycle_gan import TranslationRecipe
from .drift import EdgeConsistency, drift_picture, edge_consistency
from .networks import ClassRecipe, Prediction, predicted, train_classes
from .pseudo_labels import Uncertainty, Verdict, ensemble, filter_cases, split_domains, uncertainty
from .recipe import UDA_PRESETS, Recipe, found_in
from .registration import Measure, borrow_labels, size_of
from .translation import Translator, load_translator, save_translator, train_translator

Array = NDArray[Any]
Weights = dict[str, NDArray[np.float32]]


class Sources:
    """The labelled cases: volumes, and labels 1, 2, ... in the order of the structures."""

    def __init__(self, data_set: DataSet) -> None:
        self.name = data_set.name
        self.volumes: dict[str, Volume] = {}
        self.labels: dict[str, Array] = {}
        found = [complete_exemplar(case, axis=0) for case in data_set.cases]
        names = {name for exemplar in found for name in exemplar.structures.values()}
        wanted = data_set.structures or {name: (name,) for name in sorted(names)}
        self.structures = dict(enumerate(wanted, start=1))
        number_of = {label: at for at, labels in enumerate(wanted.values(), start=1) for label in labels}
        for case, exemplar in zip(data_set.cases, found, strict=True):
            table = np.zeros(max(exemplar.structures, default=0) + 1, np.uint8)
            for value, name in exemplar.structures.items():
                table[value] = number_of.get(name, 0)
            name = case.image.name
            self.volumes[name] = exemplar.volume
            self.labels[name] = table[exemplar.labelmap]


class _Stopped(Exception):  # noqa: N818 - the user has seen enough
    """Training of a network was stopped; `weights` are to be kept, of a network trained with `training`."""

    def __init__(self, weights: Weights, training: ClassRecipe) -> None:
        super().__init__()
        self.weights, self.training = weights, training


class Stages:
    """The stages in order. Each is cached under a digest of all that it depends on.

    If stopped during training of a network, the run ends with that network if half of its steps are done, else with the
    previous one.
    """

    def __init__(
        self,
        sources: Sources,
        targets: dict[str, Volume],
        recipe: Recipe,
        seed: int,
        device: torch.device,
        report: Report,
        intensity: IntensitySpec | None,
    ) -> None:
        self.sources, self.targets, self.recipe, self.seed = sources, targets, recipe, seed
        self.device, self.report = device, report
        self.domains = found_in(targets, recipe.domain_of, "domain_of")
        self.patients = found_in(targets, recipe.patient_of, "patient_of")
        self.structures = sources.structures
        first = next(iter(targets.values()))
        self.target_intensity = intensity or IntensitySpec.auto(first)
        self.anatomy: AnatomySpace | None = None
        if recipe.space == "anatomy":
            self.anatomy = AnatomySpace().settled([*sources.volumes.values(), *targets.values()])
        self.grid = _grid_for(first, recipe)
        self.training = ClassRecipe(
            size=cast(Any, recipe.size),
            steps=recipe.steps or 1,
            patches=recipe.patches if self.anatomy is None else recipe.patches.unshaded(),
            optimizer="sgd" if recipe.optimizer == "sgd" else "adamw",
            learning_rate=recipe.learning_rate,
        )
        self.teaching = replace(self.training, size=cast(Any, recipe.teacher_size))
        self.metrics: dict[str, Any] = {"stages": {}}
        self._last_trained: tuple[Weights, ClassRecipe] | None = None
        self._network_count = 0
        self.source_intensity = _foreground_window(sources) if recipe.foreground_percentiles else None
        self.target_images = {name: self._image(volume, self.target_intensity) for name, volume in targets.items()}
        self.folder = cache_folder() / "uda" / self._data_key()
        self.folder.mkdir(parents=True, exist_ok=True)

    def result(self) -> tuple[Weights, ClassRecipe]:
        """The weights of the final network, and its training recipe."""
        try:
            return self._all_stages(), self.training
        except _Stopped as stopped:
            self.metrics["stopped_by"] = "user"
            return stopped.weights, stopped.training

    def _all_stages(self) -> Weights:
        """Translate; label the targets; improve these labels by matching, then by self-training; filter by how much
        they change in the process; train the small network.
        """
        recipe = self.recipe
        self._stage(0, "translating")
        cases = self._translated()
        labels: dict[str, NDArray[np.uint8]] = {}
        if recipe.rounds > 1 or recipe.match:
            self._stage(1, "teaching")
            first = self._first_round(cases)
            own = {name: found.labels for name, found in first.items()}
            self._stage(2, "matching")
            matched = own | self._borrowed(first) if recipe.match else own
            self._stage(3, "self-training")
            labels = self._trusted(self._self_trained(cases, own, matched))
        self._stage(4, "learning the small network")
        return self._student(cases, labels)

    def _stage(self, number: int, name: str) -> None:
        self.report(Progress(number, 5, name))

    def _image(self, volume: Volume, intensity: IntensitySpec) -> NDArray[np.float32]:
        """The network input from a volume, on the grid."""
        return on_grid(volume, intensity, self.grid, self.anatomy, self.recipe.edges)

    def _data_key(self) -> str:
        arrays = {name: sha256_of_array(volume.array) for name, volume in self.targets.items()}
        arrays |= {f"source {name}": sha256_of_array(volume.array) for name, volume in self.sources.volumes.items()}
        arrays |= {f"labels {name}": sha256_of_array(labels) for name, labels in self.sources.labels.items()}
        source = self.source_intensity.to_dict() if self.source_intensity else None
        edges = (self.anatomy.to_dict(), self.recipe.edges) if self.anatomy else None
        space = (edges, self.target_intensity.to_dict(), source)
        return _digest(arrays, grid_to_dict(self.grid), space, self.structures, self.seed)

    def _places(self) -> str:
        """A digest of the geometry of all volumes, which determines the resampling."""
        volumes = {**self.targets, **{f"source {name}": volume for name, volume in self.sources.volumes.items()}}
        return _digest({name: sha256_of_array(volume.affine) for name, volume in volumes.items()})

    def _source_case(self, name: str) -> Case:
        """A labelled case on the grid, not yet translated."""
        volume = self.sources.volumes[name]
        image = self._image(volume, self.source_intensity or IntensitySpec.auto(volume))
        labels = labels_onto_grid(self.sources.labels[name], volume.affine, self.grid)
        return Case(image, labels.astype(np.uint8), None, self.grid.spacing_mm, name)

    def training_sample(self, number: int, rng: np.random.Generator) -> Sample:
        """The slice of a patch with the most foreground: of a source case for even numbers, else of a target."""
        if number % 2:
            name = list(self.targets)[number // 2 % len(self.targets)]
            image = self.target_images[name]
            case, kind = Case(image, np.zeros(image.shape, np.uint8), None, self.grid.spacing_mm, name), "target"
        else:
            case = self._source_case(list(self.sources.volumes)[number // 2 % len(self.sources.volumes)])
            kind = "source, before translation"
        source = PatchSource([case], self.grid, self.recipe.patches, list(self.structures.values()), self.device)
        patch = source.draw(rng)
        labels = patch.mask.cpu().numpy().astype(np.int32)
        return shown_slice(patch.image.cpu().numpy(), labels, f"{kind}: {case.name}", self.structures)

    # ------------------------------------------------------------------------------------------------------ translation

    def _translated(self) -> list[Case]:
        """Source cases translated to the target domain; those whose edges drifted are left out."""
        cases = [self._source_case(name) for name in self.sources.volumes]
        if not self.recipe.translate:
            self.metrics["stages"]["translation"] = {"translated": False}
            return cases
        translator = self._translator(cases)
        kept: list[Case] = []
        found: dict[str, Any] = {}
        shown: list[tuple[float, Case, Array, int]] = []
        for case in cases:
            image = translator.translate(case.image, report=self.report)
            drift = self._drift(case.image, image)
            found[case.name] = {"agreement": drift.score, "rejected": drift.reason}
            if drift.accepted:
                kept.append(replace(case, image=image))
            if drift.worst_slice is not None:
                shown.append((drift.score, case, image, drift.worst_slice))
        self._show_drift(sorted(shown, key=lambda row: row[0])[:2])
        self.metrics["stages"]["translation"] = {"translated": True, "cases": found}
        if not kept:
            raise InputError(
                "The translation changed the anatomy of every annotated image, so that their masks no longer fit. "
                "Train it longer (translation_steps), or switch translate off; lower drift_limit only if its "
                "pictures are right."
            )
        return kept

    def _show_drift(self, shown: Sequence[tuple[float, Case, Array, int]]) -> None:
        """The volumes with the most drift, each at its worst slice."""
        rows = [
            drift_picture(case.image[at], image[at], self._edges(case.image)[at], self._edges(image)[at])
            for _, case, image, at in shown
        ]
        self._show(
            "Translation: labelled image, translated, edges before (red) and after (cyan); the worst slices", rows
        )

    def _show(self, title: str, rows: Sequence[NDArray[np.uint8]]) -> None:
        """An image of a finished stage: rows, padded to equal width."""
        if rows:
            width = max(row.shape[1] for row in rows)
            rows = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0))) for row in rows]
            self.report(stage_picture(title, np.concatenate(rows)))

    def _slice_with(self, name: str, found: Sequence[Array]) -> NDArray[np.uint8]:
        """The slice of a target with the most foreground, once per labelmap."""
        at = int(np.argmax(sum(np.count_nonzero(labels, axis=(1, 2)) for labels in found)))
        colors = structure_colors(self.structures)
        return np.concatenate([outlined(self.target_images[name][at], labels[at], colors) for labels in found], axis=1)

    def _edges(self, image: Array) -> Array:
        """Anatomy images of arrays on the grid; in anatomy space the arrays already are."""
        if self.anatomy is not None:
            return image
        volume = Volume(image, np.diag([*self.grid.spacing_mm, 1.0]))
        return AnatomySpace("2d", intensity=IntensitySpec("window", 0.0, 1.0)).apply(volume).array

    def _drift(self, before: Array, after: Array) -> EdgeConsistency:
        return edge_consistency(self._edges(before), self._edges(after), threshold=self.recipe.drift_limit)

    def _translator(self, cases: Sequence[Case]) -> Translator:
        recipe = self._translation_recipe()
        key = _digest(to_dict(recipe))
        path = self.folder / f"translator-{key}.safetensors"
        if is_sealed(path, self._places()):
            return load_translator(path, self.device)
        checkpoint = path.with_suffix(".ckpt")
        translator = train_translator(
            [case.image for case in cases],
            list(self.target_images.values()),
            recipe,
            seed=self.seed,
            device=self.device,
            amp=patch_precision(self.device),
            report=self.report,
            checkpoint=checkpoint,
            identity=f"{key} {self._places()}",
        )
        with sealed(path, self._places()) as part:
            save_translator(translator, part)
        checkpoint.unlink(missing_ok=True)
        return translator

    def _translation_recipe(self) -> TranslationRecipe:
        recipe = self.recipe
        # The same seed for edges and intensities, so that the two are comparable.
        return replace(
            TRANSLATIONS[UDA_PRESETS[recipe.preset].translation],
            skip=recipe.residual,
            steps=recipe.translation_steps or 1,
            cycle_weight=recipe.cycle_weight,
            identity_weight=recipe.identity_weight,
            adversarial="log" if recipe.adversarial == "log" else "lsgan",
        )

    # ---------------------------------------------------------------------------------------------------------- rounds

    def _first_round(self, cases: Sequence[Case]) -> dict[str, Prediction]:
        """Predictions for each target by a teacher trained on sources alone."""
        weights = self._teacher(cases, [], 1)
        return {name: self._predicted(weights, image, name, 1) for name, image in self.target_images.items()}

    def _self_trained(
        self, cases: Sequence[Case], own: Mapping[str, NDArray[np.uint8]], matched: Mapping[str, NDArray[np.uint8]]
    ) -> dict[str, list[NDArray[np.uint8]]]:
        """Labels of each target (D, H, W) from round to round, oldest first.

        The matched labels train round 2, whose predictions train the next. The first round has the first teacher's
        `own` labels, since borrowed ones must not be held against the borrower; after matching it does not count where
        two later ones can be compared. Without self-training the matched labels are the only round.
        """
        rounds, current = self.recipe.rounds, dict(matched)
        first = own if rounds > 1 else matched
        counted = [] if self.recipe.match and rounds > 2 else [first]
        found = {name: [labels[name] for labels in counted] for name in current}
        for number in range(2, rounds + 1):
            weights = self._teacher(cases, self._taught(current), number)
            for name, image in self.target_images.items():
                current[name] = self._predicted(weights, image, name, number).labels
                found[name].append(current[name])
        names = list(found)[:: max(len(found) // 3, 1)][:3]
        self._show("Teachers: labels of each round, oldest first", [self._slice_with(n, found[n]) for n in names])
        return found

    def _taught(self, labels: Mapping[str, NDArray[np.uint8]]) -> list[Case]:
        """The targets with their labels; those without any are skipped."""
        return [
            Case(self.target_images[name], found, None, self.grid.spacing_mm, name)
            for name, found in labels.items()
            if found.any()
        ]

    def _teacher(self, cases: Sequence[Case], taught: Sequence[Case], number: int) -> Weights:
        return self._trained(cases, taught, f"teacher {number}", self.teaching)

    def _trained(self, cases: Sequence[Case], taught: Sequence[Case], name: str, training: ClassRecipe) -> Weights:
        """Weights of a network trained on sources and labelled targets; cached.

        Seeds are by the order of the networks, so that a run of one network is the beginning of those of several.
        """
        self._network_count += 1
        seed = self.seed + self._network_count
        start = self._start_of(training)
        if start is not None:
            training = replace(training, steps=max(1, round(self.recipe.inherited_fraction * training.steps)))
        digests = [sha256_of_array(case.image) + sha256_of_array(case.mask) for case in [*cases, *taught]]
        begun = [sha256_of_array(tensor) for tensor in start.values()] if start else None
        key = _digest(digests, repr(training), self.recipe.target_share, seed, begun)
        path = self.folder / f"network-{key}.npz"
        if is_sealed(path, self._places()):
            with np.load(path) as kept:
                weights = {tensor: kept[tensor] for tensor in kept.files}
            self._last_trained = weights, training
            return weights
        share = self.recipe.target_share if taught else 0.0
        shares = [(1 - share) / len(cases)] * len(cases) + [share / max(len(taught), 1)] * len(taught)
        checkpoint = path.with_suffix(".ckpt")
        trained, fitted = train_classes(
            [*cases, *taught],
            shares,
            self.grid,
            self.structures.values(),
            training,
            seed=seed,
            start=start,
            device=self.device,
            report=self.report,
            message=name,
            checkpoint=checkpoint,
            identity=f"{key} {self._places()}",
        )
        if fitted.stopped_by == "user":
            checkpoint.unlink(missing_ok=True)
            half_done = 2 * fitted.steps >= training.steps
            raise _Stopped(*((trained, training) if half_done or not self._last_trained else self._last_trained))
        self._last_trained = trained, training
        with sealed(path, self._places()) as part, part.open("wb") as stream:
            np.savez(stream, **trained)  # type: ignore[arg-type]
        checkpoint.unlink(missing_ok=True)
        return trained

    def _start_of(self, training: ClassRecipe) -> Weights | None:
        """The weights of the network trained before, if this one has the same size and the recipe wants it; otherwise
        None, for random ones.
        """
        if not self.recipe.inherit_weights or self._last_trained is None:
            return None
        weights, before = self._last_trained
        return weights if before.size == training.size else None

    def _predicted(self, weights: Weights, image: NDArray[np.float32], name: str, number: int) -> Prediction:
        return predicted(
            weights,
            image,
            self.grid,
            len(self.structures) + 1,
            self.teaching,
            device=self.device,
            report=self.report,
            message=f"round {number}: {name}",
        )

    # ------------------------------------------------------------------------------------------------ matching, filter

    def _uncertainties(self, rounds: Mapping[str, Sequence[Array]]) -> dict[str, Uncertainty]:
        return {name: uncertainty(list(labels), list(self.structures)) for name, labels in rounds.items()}

    def _borrowed(self, first: Mapping[str, Prediction]) -> dict[str, NDArray[np.uint8]]:
        """Labels of those uncertain targets that could borrow from certain ones, on the grid.

        There is only one round so far, so uncertainty is that of its teacher's probabilities.
        """
        uncertain = {name: Uncertainty(found.doubt, {}, empty=not found.labels.any()) for name, found in first.items()}
        split = split_domains(uncertain, self.domains or None)
        images = {name: self._gridded(name, volume) for name, volume in self.targets.items()}
        by = cast(Measure, self.recipe.registration.match_by)  # one of its choices
        sizes = {
            name: size_of(name, images[name], first[name].labels, by=by, patient=self.patients.get(name, ""))
            for name in self.targets
        }

        def load(name: str) -> tuple[Volume, Volume]:
            return images[name], images[name].like(first[name].labels)

        found = {
            name: borrow_labels(
                sizes[name],
                images[name],
                [sizes[other] for other in split.better],
                load,
                self.recipe.registration,
                report=self.report,
            )
            for name in split.worse
        }
        lent = [
            self._slice_with(name, [first[name].labels, borrowed.labels.array])
            for name, borrowed in found.items()
            if borrowed.labels is not None
        ]
        self._show("Matching: labels of the first teacher, and those borrowed by registration", lent[:3])
        self.metrics["stages"]["matching"] = {
            "rule": split.rule,
            "lenders": list(split.better),
            "borrowers": {name: borrowed.to_dict() for name, borrowed in found.items()},
        }
        return {name: b.labels.array.astype(np.uint8) for name, b in found.items() if b.labels is not None}

    def _gridded(self, name: str, volume: Volume) -> Volume:
        """The intensities of a target on the grid, in the grid's own frame: axis-aligned, origin at the centre."""
        intensity = self.target_intensity
        image = intensity.apply(volume.array, intensity.range_of(volume.array))
        image = image_onto_grid(image, volume.affine, self.grid)
        affine = np.diag([*self.grid.spacing_mm, 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(image.shape[::-1]) - 1) / 2)
        return Volume(image, affine)

    def _trusted(self, rounds: Mapping[str, Sequence[NDArray[np.uint8]]]) -> dict[str, NDArray[np.uint8]]:
        """One labelmap per trusted target: the last one, or an ensemble of all rounds if filtering is on."""
        if not self.recipe.filter:
            return {name: labels[-1] for name, labels in rounds.items() if labels[-1].any()}
        verdicts = filter_cases(self._uncertainties(rounds), self.recipe.pseudo_labels)
        self.metrics["stages"]["filter"] = [verdict.to_dict() for verdict in verdicts]
        kept = {v.name: ensemble(rounds[v.name], self.recipe.pseudo_labels.vote) for v in verdicts if v.kept}
        kept = {name: labels for name, labels in kept.items() if labels.any()}
        order = [verdict.name for verdict in verdicts if verdict.name in kept]
        self._show(
            "Filter: what is learned from, the least and the most certain target",
            [self._slice_with(name, [kept[name]]) for name in (*order[:1], *order[-1:])],
        )
        if not kept:
            why = _reasons(verdicts) or "all that was found in them is background"
            raise InputError(
                f"None of the {len(rounds)} unlabelled images got a segmentation to learn from: {why}. Train longer "
                "(steps), or leave out fewer (pseudo_labels.drop_fraction)."
            )
        return kept

    def _student(self, cases: Sequence[Case], labels: Mapping[str, NDArray[np.uint8]]) -> Weights:
        return self._trained(cases, self._taught(labels), "small network", self.training)


def _foreground_window(sources: Sources) -> IntensitySpec:
    """The percentiles of all labelled voxels of all sources together."""
    values = np.concatenate([volume.array[sources.labels[name] > 0] for name, volume in sources.volumes.items()])
    low, high = np.percentile(values, PERCENTILES) if values.size else (0.0, 0.0)
    if not high > low:
        raise InputError(
            "The labelled voxels of the sources have one value, so they give no percentiles; leave "
            "foreground_percentiles off."
        )
    return IntensitySpec("window", float(low), float(high))


def _reasons(verdicts: Sequence[Verdict]) -> str:
    return "; ".join(f"{verdict.name}: {verdict.reason}" for verdict in verdicts if verdict.reason)


def _grid_for(target: Volume, recipe: Recipe) -> Grid:
    """The working grid: the targets' orientation, with in-plane spacing from the preset."""
    assert recipe.patch is not None  # resolved
    if recipe.spacing_mm is not None:
        return Grid.of(target, recipe.patch, recipe.spacing_mm)
    spacing = np.asarray(target.spacing_mm, dtype=np.float64)
    across = 2 - target.acquisition_axis  # of (i, j, k)
    in_plane = [axis for axis in range(3) if axis != across]
    longest = max(target.shape[::-1][axis] for axis in in_plane)
    wanted = UDA_PRESETS[recipe.preset].in_plane
    if wanted:
        spacing[in_plane] *= max(longest / wanted, 1.0)
    return Grid.of(target, recipe.patch, spacing.tolist())


def _digest(*parts: Any) -> str:
    return sha256_of_json(parts)[:24]
