"""DICOM: a folder with one series, or a single-frame or multi-frame file; geometrically exact, or rejected.

GDCM decodes the pixels. Position and rescaling of each frame are read from the headers here, alike for single-frame
files and for multi-frame ones (DICOM PS3.3, C.7.6.2 and C.7.6.16), and compared in millimetres with the regular stack
of equally spaced slices that a volume is.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from FewShotSegLib.errors import InputError, reason_of

if TYPE_CHECKING:
    import pydicom
    import SimpleITK

Array = np.ndarray[Any, np.dtype[Any]]

log = logging.getLogger(__name__)

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"  # SOP class of DICOM SEG
RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_TOLERANCE_MM = 0.05  # deviation of a slice from its position in the stack; headers with one decimal are that imprecise
_TURNED = 1e-4  # change of a direction between slices; 0.05 mm over 500 mm
_SAME_PLACE_MM = 1e-3


@dataclass(frozen=True, eq=False)
class _Frame:
    """One image: position of its first pixel (LPS mm), row and column directions, mm between columns and rows, slope
    and intercept of stored values, and its thickness in mm. `at` is its index among the frames of its file, `time` the
    sort key of phases."""

    file: Path
    at: int
    position: Array | None
    directions: Array | None
    spacing: tuple[float, float] | None
    rescale: tuple[float, float] | None
    thickness: float = 1.0
    time: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class DicomVolume:
    """Values (T, K, J, I), with channels last if there are several, and the affine (IJK to RAS)."""

    array: Array
    affine: Array


def read_series(folder: Path, name: str) -> DicomVolume:
    """Return the largest series of a folder."""
    with quiet():
        files = series_files(folder, name)
        if len(files) == 1:
            return read_file(files[0], name)
        frames = [frame for file in files for frame in _frames_of(file, name)]
        if len(frames) > len(files):
            raise InputError(f"{name} holds {len(files)} files of many frames; give one of them.")
        return _stacked(frames, lambda ordered: _pixels_of_files(ordered, name), name)


def read_file(file: Path, name: str) -> DicomVolume:
    """Return the content of one file, single-frame or multi-frame."""
    with quiet():
        frames = _frames_of(file, name)
        return _stacked(frames, lambda ordered: _pixels_of_frames(ordered, name), name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress ITK's warnings on standard error, dozens of lines for a harmless header."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def series_files(folder: Path, name: str) -> list[Path]:
    """Return the files of the series with most files; ambiguity is rejected."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader
    series = {uid: reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder))}
    if len(series) > 1:  # segmentations and structure sets are often stored with their images
        drawn = [uid for uid, files in series.items() if _is_drawn(files, name)]
        series = {uid: files for uid, files in series.items() if uid not in drawn}
    if not series:
        raise InputError(f"{name} holds no DICOM series; give a folder with the files of one series, or an image file.")
    most = max(len(files) for files in series.values())
    largest = [uid for uid, files in series.items() if len(files) == most]
    if len(largest) > 1:
        described = "; ".join(_described(series[uid][0], name) for uid in sorted(largest))
        raise InputError(
            f"{name} holds {len(largest)} series of {most} files each: {described}. Keep the files of one in the "
            "folder."
        )
    if len(series) > 1:
        log.warning(
            "%s holds %d DICOM series; %s, the largest with %d files, is read. For another one, put its files into a "
            "folder of their own.",
            name,
            len(series),
            _described(series[largest[0]][0], name),
            most,
        )
    return [Path(file) for file in series[largest[0]]]


def _is_drawn(files: Sequence[str], name: str) -> bool:
    """Whether a series is a segmentation or structure set of another one, not an image."""
    drawn = (SEGMENTATION, RT_STRUCTURE_SET)
    return len(files) == 1 and header_of(Path(files[0]), name).get("SOPClassUID") in drawn


def _described(file: str, name: str) -> str:
    """A series in readable form: its description and number, and one of its files."""
    header = header_of(Path(file), name)
    called, number = str(header.get("SeriesDescription") or "without a description"), header.get("SeriesNumber")
    numbered = f"series {number}, " if number is not None else ""
    return f'"{called}" ({numbered}for example {Path(file).name})'


# ------------------------------------------------------------------------------------------------------------- headers


def header_of(file: Path, name: str) -> pydicom.Dataset:
    """Return the header of a DICOM file, without its pixels."""
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about non-conformant values; what matters is checked here
            return pydicom.dcmread(file, stop_before_pixels=True)
    except Exception as error:  # of many types, depending on the damage
        reason = reason_of(error)
        raise InputError(f"{name} cannot be read: {file.name} is damaged or no DICOM file ({reason}).") from None


def _frames_of(file: Path, name: str) -> list[_Frame]:
    header = header_of(file, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _frames_in(header, file, name)
    except InputError:
        raise
    except Exception as error:  # texts instead of numbers, missing sequences, ...
        reason = reason_of(error)
        raise InputError(
            f"{name} cannot be read: {file.name} is damaged ({reason}); copy or export it again."
        ) from None


def _frames_in(header: pydicom.Dataset, file: Path, name: str) -> list[_Frame]:
    if header.get("SOPClassUID") == SEGMENTATION:
        raise InputError(
            f"{name} is a DICOM segmentation, which holds structures and no image; save it as a segmentation "
            "(.seg.nrrd), for example with 3D Slicer, and give that as a labelmap."
        )
    if header.get("SOPClassUID") == RT_STRUCTURE_SET:
        raise InputError(
            f"{name} is an RT structure set, which holds outlines and no image; give the series that it was drawn on, "
            "and the set as its labelmap."
        )
    count = int(header.get("NumberOfFrames") or 1)
    if not 1 <= count <= 1_000_000:
        raise InputError(f"{name} cannot be read: its header says {count} frames; export it again.")
    own = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    if own and len(own) != count:
        raise InputError(
            f"{name} cannot be read: its header says {count} frames and describes {len(own)}; export it again."
        )
    frames = []
    for at in range(count):
        groups = [*own[at : at + 1], *shared[:1]]
        position = _numbers(groups, header, "PlanePositionSequence", "ImagePositionPatient", 3)
        directions = _numbers(groups, header, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        spacing = _numbers(groups, header, "PixelMeasuresSequence", "PixelSpacing", 2)
        slope = _numbers(groups, header, "PixelValueTransformationSequence", "RescaleSlope", 1)
        offset = _numbers(groups, header, "PixelValueTransformationSequence", "RescaleIntercept", 1)
        thickness = _numbers(groups, header, "PixelMeasuresSequence", "SliceThickness", 1)
        known = slope is not None and offset is not None
        if count > 1 and not own:
            position = None  # one position for all frames is meaningless
        frames.append(
            _Frame(
                file,
                at,
                position,
                None if directions is None else directions.reshape(2, 3),
                None if spacing is None else (float(spacing[1]), float(spacing[0])),
                (float(slope[0]), float(offset[0])) if known else None,  # type: ignore[index]
                float(thickness[0]) if thickness is not None and thickness[0] > 0 else 1.0,
                _time_of(groups, header, at),
            )
        )
    return frames


def _numbers(groups: Sequence[Any], header: Any, sequence: str, key: str, count: int) -> Array | None:
    """`count` finite numbers under a key: in the per-frame functional groups, the shared ones, or the header."""
    found = [group[sequence][0] for group in groups if group.get(sequence)]
    for place in (*found, header):
        value = place.get(key)
        if value is None or (isinstance(value, str) and not value):
            continue
        numbers = np.array(value, dtype=np.float64).reshape(-1)
        if numbers.size != count or not np.isfinite(numbers).all():
            raise ValueError(f"{key} is {value}")
        return numbers
    return None


def _time_of(groups: Sequence[Any], header: Any, at: int) -> tuple[float, ...]:
    """Sort key of frames at the same position: their time or temporal index, then their numbers."""
    content: Any = next((group["FrameContentSequence"][0] for group in groups if group.get("FrameContentSequence")), {})
    keys = ((content, "TemporalPositionIndex"), (header, "TemporalPositionIdentifier"), (header, "AcquisitionNumber"))
    found = [float(place.get(key) or 0) for place, key in keys]
    return (*found, float(header.get("TriggerTime") or 0), float(header.get("InstanceNumber") or 0), float(at))


# ------------------------------------------------------------------------------------------------------------ geometry


def _stacked(frames: list[_Frame], pixels: Any, name: str) -> DicomVolume:
    """The frames as stacks sorted by position, one per time point."""
    if len(frames) == 1:
        array = pixels(frames)
        return DicomVolume(array[np.newaxis], _affine_of_one(frames[0]))
    if any(frame.position is None or frame.directions is None for frame in frames):
        if any(frame.file != frames[0].file for frame in frames):
            raise InputError(
                f"{name}: the files do not say where their slices lie, as secondary captures do not; export the "
                "original series, or give the files one by one."
            )
        # The frames of an ultrasound clip: a time series, not a stack.
        array = pixels(frames)
        return DicomVolume(array[:, np.newaxis], _affine_of_one(frames[0]))
    directions = np.array([frame.directions for frame in frames])
    if np.abs(directions - directions[0]).max() > _TURNED:
        raise InputError(
            f"{name}: the slices have different orientations, as when a localizer is among them; keep those of one "
            "orientation in the folder."
        )
    if len({frame.spacing for frame in frames}) > 1:
        raise InputError(f"{name}: the slices differ in the size of their pixels; keep slices of one size.")
    along = np.cross(*directions[0])
    places: list[list[_Frame]] = []
    reached = -np.inf
    for frame in sorted(frames, key=lambda frame: float(frame.position @ along)):
        at = float(frame.position @ along)
        if at - reached < _SAME_PLACE_MM:
            places[-1].append(frame)
        else:
            places.append([frame])
            reached = at
    times = len(places[0])
    if any(len(place) != times for place in places):
        raise InputError(
            f"{name}: several images lie at the same position, at some positions more than at others; keep one time "
            "point or phase."
        )
    places = [sorted(place, key=lambda frame: frame.time) for place in places]
    affine = _affine_of_stack([place[0] for place in places], name)
    ordered = [place[time] for time in range(times) for place in places]
    array = pixels(ordered)
    return DicomVolume(array.reshape(times, len(places), *array.shape[1:]), affine)


def _affine_of_stack(frames: Sequence[_Frame], name: str) -> Array:
    """The affine of equally spaced slices, sorted along their normal; each must be at its position by the affine."""
    positions = np.array([frame.position for frame in frames])
    row, column = frames[0].directions  # type: ignore[misc]
    along = np.cross(row, column)
    if len(frames) == 1:
        return _affine_of_one(frames[0])
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    _check_spacing(frames, positions @ along, name)
    beside = positions - positions.mean(axis=0) - np.outer(np.arange(len(frames)) - (len(frames) - 1) / 2, step)
    middle = (beside.max(axis=0) + beside.min(axis=0)) / 2
    worst = float(np.linalg.norm(beside - middle, axis=1).max())
    sideways = float(np.linalg.norm(step - (step @ along) * along)) * (len(frames) - 1)
    if sideways > 2 * _TOLERANCE_MM:
        raise InputError(
            f"{name}: the slices are shifted sideways (gantry tilt), {sideways:.3g} mm from the first to the last; "
            "correct the tilt first, for example with dcm2niix, and use the file it writes."
        )
    if worst > _TOLERANCE_MM:
        raise InputError(
            f"{name}: the slices are unevenly spaced, up to {worst:.3g} mm beside their place in an even stack; "
            "resample to even spacing first, for example with dcm2niix."
        )
    return _affine(row, column, along * float(step @ along), frames[0].spacing, positions[0] + middle)


def _check_spacing(frames: Sequence[_Frame], at: Array, name: str) -> None:
    """Raise an error that names the two slices of a gap in otherwise regular spacing."""
    gaps = np.diff(at)
    usual = float(np.median(gaps))
    wrong = np.flatnonzero(np.abs(gaps - usual) > max(0.1 * usual, 2 * _TOLERANCE_MM))
    if not wrong.size:
        return
    between = [frame.file.name if frame.at == 0 else f"frame {frame.at + 1}" for frame in frames[wrong[0] :][:2]]
    raise InputError(
        f"{name}: slices are missing, unevenly spaced, or of several phases, {gaps[wrong[0]]:g} mm between "
        f"{between[0]} and {between[1]} where {usual:g} mm is usual; complete the series, or keep one phase in it."
    )


def _affine_of_one(frame: _Frame) -> Array:
    """A single slice is 1 mm thick and in the plane z = 0 unless its header says otherwise."""
    row, column = frame.directions if frame.directions is not None else np.eye(3)[:2]
    position = frame.position if frame.position is not None else np.zeros(3)
    return _affine(row, column, np.cross(row, column) * frame.thickness, frame.spacing, position)


def _affine(row: Array, column: Array, step: Array, spacing: tuple[float, float] | None, position: Array) -> Array:
    between_columns, between_rows = spacing or (1.0, 1.0)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = row * between_columns, column * between_rows, step, position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


# -------------------------------------------------------------------------------------------------------------- pixels


def _pixels_of_files(frames: Sequence[_Frame], name: str) -> Array:
    """Rescaled values (N, J, I) of single-frame files in the given order."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(frame.file) for frame in frames])
    rescales = {frame.rescale or (1.0, 0.0) for frame in frames}
    whole = all(float(number).is_integer() for rescale in rescales for number in rescale)
    if len(rescales) > 1 or not whole:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # the type of the first file may be too small for the others
    return _executed(reader, name)


def _pixels_of_frames(frames: Sequence[_Frame], name: str) -> Array:
    """Rescaled values (N, J, I) of the frames of one file in the given order."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(frames[0].file))
    if len({frame.rescale for frame in frames}) > 1:
        return _rescaled_each(frames, name)
    array = _executed(reader, name)
    if len(frames) == 1:
        return array if array.shape[0] == 1 and array.ndim > 2 else array[np.newaxis]
    if array.shape[0] != len(frames):
        raise InputError(f"{name} cannot be read: it holds {array.shape[0]} frames and describes {len(frames)}.")
    return array[[frame.at for frame in frames]]


def _rescaled_each(frames: Sequence[_Frame], name: str) -> Array:
    """Frames with different rescaling: read as stored, since GDCM applies one rescaling per file."""
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = pydicom.dcmread(frames[0].file).pixel_array.astype(np.float32)
    except Exception as error:
        reason = reason_of(error)
        raise InputError(
            f"{name}: its frames have values on scales of their own, and cannot be read ({reason}); save it without "
            "compression, or one file a frame."
        ) from None
    scales = [frame.rescale or (1.0, 0.0) for frame in frames]
    return np.stack([stored[f.at] * slope + offset for f, (slope, offset) in zip(frames, scales, strict=True)])


def _executed(reader: SimpleITK.ImageFileReader | SimpleITK.ImageSeriesReader, name: str) -> Array:
    import SimpleITK as sitk

    try:
        image = reader.Execute()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(
            f"{name}: the DICOM pixels cannot be read ({lines[-1] if lines else 'no reason given'})."
        ) from None
    return sitk.GetArrayFromImage(image)
