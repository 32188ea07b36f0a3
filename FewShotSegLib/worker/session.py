"""Interactive prediction on single slices: volumes by name, and predictors cached between clicks."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import AXES, AXIS_LETTERS, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_frame import SliceFrame
from FewShotSegLib.imaging.slice_reader import SliceReader
from FewShotSegLib.io.adapters import read_card
from FewShotSegLib.io.files import written_whole
from FewShotSegLib.progress import Report

if TYPE_CHECKING:
    from FewShotSegLib.inference.predictor import Masks, Predictor
    from FewShotSegLib.sam.network import Embedding

log = logging.getLogger(__name__)

_KEPT_PREDICTORS = 3


@dataclass(frozen=True, eq=False)
class _Known:
    """A volume, the user's intensity rule for it (None: the adapter's, or automatic), and computed ranges."""

    volume: Volume
    intensity: IntensitySpec | None
    ranges: dict[IntensitySpec, tuple[float, float] | None]


class PromptSession:
    """Volumes and predictors of one worker. Methods take a request and return its result; see `worker`."""

    def __init__(self) -> None:
        self._volumes: dict[str, _Known] = {}
        self._predictors: dict[tuple[Any, ...], Predictor] = {}

    def add_volume(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Store a copy of a volume under its name."""
        try:
            affine = np.array(request.get("affine", np.eye(4)), dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError("The affine of a volume is four rows of four numbers.") from None
        volume = Volume(_array_from(request), affine)
        spec = request.get("intensity")
        self._volumes[_name(request)] = _Known(volume, IntensitySpec.from_dict(spec) if spec else None, {})
        return {"shape": list(volume.shape)}

    def forget_volume(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"known": self._volumes.pop(_name(request), None) is not None}

    def encode(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Encode one slice into the cache."""
        started = time.perf_counter()
        known, predictor = self._volume(request), self._predictor(request)
        reader = self._reader(known, predictor, _axis(request, known.volume))
        predictor.encode([reader.square(_whole_number(request, "index"))])
        return {"seconds": time.perf_counter() - started}

    def predict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Mask and predicted IoU of one prompt; coordinates may be `points_ras` and `box_ras`."""
        started = time.perf_counter()
        known, predictor = self._volume(request), self._predictor(request)
        prompt = Prompt.from_dict(request.get("prompt", {}), known.volume)
        prompt.check_inside(known.volume)
        reader = self._reader(known, predictor, prompt.axis)
        frame = reader.frame(prompt.index)
        masks = _answer(prompt, predictor, predictor.encode([reader.square(prompt.index)])[0], frame)
        mask = predictor.on_voxels(masks, frame)[0] > 0
        if request.get("mask_path"):
            _save(mask, Path(request["mask_path"]))
        answer = Prompt(prompt.axis, prompt.index, mask=mask).to_dict()
        told = {"advice": predictor.advice, "seconds": time.perf_counter() - started}
        return {**answer, "iou": float(masks.iou[0]), **told}

    def propagate(self, request: Mapping[str, Any], report: Report) -> dict[str, Any]:
        """Masks and predicted IoU of one structure on its prompted slices and their neighbours, sorted by slice."""
        from FewShotSegLib.inference.segment import SegmentOptions, propagate

        known, predictor = self._volume(request), self._predictor(request)
        prompts = [Prompt.from_dict(prompt, known.volume) for prompt in request.get("prompts", ())]
        direction = request.get("direction", 0)
        if direction not in (-1, 0, 1):
            raise InputError(f"The direction of propagation is -1, 0 (both) or 1, got {direction!r}.")
        options = SegmentOptions(
            max_propagation=_whole_number(request, "count"), directions=(direction,) if direction else (1, -1)
        )
        found = propagate(known.volume, predictor, prompts, intensity=known.intensity, options=options, report=report)
        axis = prompts[0].axis
        return {
            "slices": [{**Prompt(axis, index, mask=mask).to_dict(), "iou": iou} for index, (mask, iou) in found.items()]
        }

    def suggest(self, request: Mapping[str, Any], report: Report) -> dict[str, Any]:
        """The slice with the highest uncertainty of the adapter, and the uncertainty of each evaluated slice."""
        from FewShotSegLib.inference.next_slice import suggest_slice
        from FewShotSegLib.inference.segment import SegmentOptions, slice_axis

        known, predictor = self._volume(request), self._predictor(request)
        axis = slice_axis(known.volume, predictor.adapter, (), SegmentOptions(axis=AXES.get(request.get("axis", ""))))
        known_slices = request.get("known", ())
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in known_slices):
            raise InputError("The known slices are a list of whole numbers.")
        found = suggest_slice(
            known.volume, predictor, axis, known=known_slices, intensity=known.intensity, report=report
        )
        return {"axis": AXIS_LETTERS[axis], "index": found.index, "doubts": found.doubts}

    def _volume(self, request: Mapping[str, Any]) -> _Known:
        known = self._volumes.get(_name(request))
        if known is None:
            raise InputError(f"No volume is called {_name(request)!r} here; send it first.")
        return known

    def _predictor(self, request: Mapping[str, Any]) -> Predictor:
        """The predictor for base, adapter and device, cached; a changed adapter file is reloaded."""
        import torch

        from FewShotSegLib.devices import choose_device
        from FewShotSegLib.inference.load import load_predictor

        adapter = request.get("adapter")
        path = Path(adapter) if adapter else None
        content = read_card(path).get("digest") if path is not None else ""
        key = (request.get("base"), adapter, str(content), request.get("device", "auto"))
        if key not in self._predictors:
            device = choose_device(request.get("device", "auto"), log.info)
            with torch.random.fork_rng(devices=[]):
                self._predictors[key] = load_predictor(adapter, request.get("base"), device)
            while len(self._predictors) > _KEPT_PREDICTORS:
                self._predictors.pop(next(iter(self._predictors)))
        self._predictors[key] = self._predictors.pop(key)  # least recently used order
        return self._predictors[key]

    @staticmethod
    def _reader(known: _Known, predictor: Predictor, axis: int) -> SliceReader:
        volume, adapter = known.volume, predictor.adapter
        intensity = known.intensity or (adapter.intensity if adapter else IntensitySpec.auto(volume))
        if intensity not in known.ranges:
            known.ranges[intensity] = intensity.range_of(volume.array)
        return SliceReader(volume, intensity, predictor.image_size, axis, value_range=known.ranges[intensity])


def _array_from(request: Mapping[str, Any]) -> NDArray[Any]:
    """The array in an .npy file; with "delete" the file is removed, so that no image is left behind."""
    path = Path(str(request.get("path", "")))
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the volume {path} ({error}).") from None
    finally:
        if request.get("delete"):
            path.unlink(missing_ok=True)


def _answer(prompt: Prompt, predictor: Predictor, embedding: Embedding, frame: SliceFrame) -> Masks:
    """Logits of the prompt; a structure known to the adapter is used, any other name is just a name."""
    learned = predictor.adapter.structures if predictor.adapter else {}
    values = [value for value, name in learned.items() if name == prompt.structure]
    if prompt.shows_place:
        return predictor.answer(embedding, prompt, frame, values)
    if not values:
        raise InputError(f"The adapter knows no structure {prompt.structure!r}; give points or a box.")
    return predictor.decode_structures(embedding, values)


def _name(request: Mapping[str, Any]) -> str:
    name = request.get("volume")
    if not isinstance(name, str) or not name:
        raise InputError(f"The name of the volume is missing, got {name!r}.")
    return name


def _axis(request: Mapping[str, Any], volume: Volume) -> int:
    return AXES[request["axis"]] if request.get("axis") in AXES else volume.acquisition_axis


def _whole_number(request: Mapping[str, Any], key: str) -> int:
    value = request.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{key} must be a whole number, got {value!r}.")
    return value


def _save(mask: NDArray[np.bool_], path: Path) -> None:
    with written_whole(path) as part, part.open("wb") as stream:
        np.save(stream, mask)
