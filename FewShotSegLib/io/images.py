"""Image files and DICOM folders through SimpleITK: read whole and in the right place, or refused with the reason.

This is the only place where files meet arrays: SimpleITK works in LPS, the affines here and everywhere else are RAS.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from FewShotSegLib.errors import InputError

from .files import known_suffix, written_whole

if TYPE_CHECKING:
    import SimpleITK

Array = np.ndarray[Any, np.dtype[Any]]

log = logging.getLogger(__name__)

VOLUME_SUFFIXES = (".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".ima")
# One-file formats only: a header with a detached data file cannot be replaced in one step.
SAVE_SUFFIXES = (".nrrd", ".seg.nrrd", ".nii", ".nii.gz", ".mha")

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_SHEAR_TOLERANCE = 1e-4  # cosine between two axes; 0.05 mm over 500 mm


# --------------------------------------------------------------------------------------------------------------- read


def read_image(path: Path, name: str) -> SimpleITK.Image:
    """Return the image in a file, or of the largest DICOM series of a folder; `name` is what error messages call it."""
    if not path.exists():
        raise InputError(f"{name} does not exist; check the path.")
    if path.is_dir():
        return _read_dicom_folder(path, name)
    if known_suffix(path).lower().removeprefix(".seg") not in VOLUME_SUFFIXES + PICTURE_SUFFIXES + DICOM_SUFFIXES:
        allowed = " ".join(VOLUME_SUFFIXES + PICTURE_SUFFIXES + DICOM_SUFFIXES)
        raise InputError(f"{name} has an unknown file type; allowed are {allowed} and a folder of DICOM files.")
    return _read_file(path, name)


def _read_file(path: Path, name: str) -> SimpleITK.Image:
    import SimpleITK as sitk

    with _quiet():
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise InputError(_cannot_read(name, str(error))) from None
    if _nifti_is_short(path):
        raise InputError(f"{name} cannot be read: the file was cut short; copy it again.")
    return image


def _cannot_read(name: str, reason: str) -> str:
    if "orthonormal" in reason:
        return f"{name} has a sheared or broken orientation in its header; resample it to straight axes."
    return f"{name} cannot be read ({_last_words(reason)}); the file is damaged or not what its name says."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ITK's warnings, dozens of lines for a harmless header, off standard error."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _last_words(reason: str) -> str:
    """Return the last line of an ITK exception, where the reason stands, without addresses."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return re.sub(r"^(ITK|sitk::)?\s*ERROR:\s*|\w+\(0x[0-9a-f]+\):\s*", "", lines[-1] if lines else "no reason given")


def array_of(image: SimpleITK.Image) -> Array:
    """Return all values: (J, I), (K, J, I) or (T, K, J, I), with the channels, if any, behind them."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(image)


def one_volume(image: SimpleITK.Image, path: Path, channel: int | None, time_index: int | None, name: str) -> Array:
    """Return the values (K, J, I) of one channel and one time; colour becomes luminance unless a channel is chosen."""
    array = _one_channel(array_of(image), image.GetNumberOfComponentsPerPixel(), path, channel, name)
    return _one_time(array, image.GetDimension(), time_index, name)


def _one_channel(array: Array, components: int, path: Path, channel: int | None, name: str) -> Array:
    if components == 1:
        if channel not in (None, 0):
            raise InputError(f"{name} has one channel, got channel {channel}; leave the channel out.")
        return array
    if channel is not None:
        if not 0 <= channel < components:
            raise InputError(f"{name} has channels 0 to {components - 1}, got {channel}.")
        return array[..., channel]
    picture = path.suffix.lower() in PICTURE_SUFFIXES + DICOM_SUFFIXES or path.is_dir()
    if picture and components == 2:  # grey and transparency
        return array[..., 0]
    if components in (3, 4) and (picture or array.dtype == np.uint8):
        return (array[..., :3] @ _LUMINANCE).astype(np.float32)
    raise InputError(f"{name} has {components} values per voxel; choose one with a channel from 0 to {components - 1}.")


def _one_time(array: Array, dimension: int, time_index: int | None, name: str) -> Array:
    """Return (K, J, I) from what a file of 2, 3 or 4 dimensions holds."""
    if dimension > 4:
        raise InputError(f"{name} has {dimension} dimensions; volumes have 2, 3 or, with a time index, 4.")
    count = array.shape[0] if dimension == 4 else 1
    if time_index is not None and not 0 <= time_index < count:
        raise InputError(f"{name} has time indices 0 to {count - 1}, got {time_index}.")
    if count > 1 and time_index is None:
        raise InputError(f"{name} is 4-D with {count} volumes; choose one with a time index from 0 to {count - 1}.")
    if dimension == 4:
        return array[time_index or 0]
    return array[np.newaxis] if dimension == 2 else array


def affine_of(image: SimpleITK.Image) -> Array:
    """Return IJK->RAS (4, 4); a two-dimensional image lies in the plane z = 0 with 1 mm thickness."""
    dimension = image.GetDimension()
    used = min(dimension, 3)
    direction, spacing, origin = np.eye(3), np.ones(3), np.zeros(3)
    direction[:used, :used] = np.reshape(image.GetDirection(), (dimension, dimension))[:used, :used]
    spacing[:used] = image.GetSpacing()[:used]
    origin[:used] = image.GetOrigin()[:used]
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = direction * spacing
    affine_lps[:3, 3] = origin
    return _LPS_FROM_RAS @ affine_lps


# -------------------------------------------------------------------------------------------------------------- DICOM


def _read_dicom_folder(folder: Path, name: str) -> SimpleITK.Image:
    import SimpleITK as sitk

    with _quiet():
        files = series_files(folder, name)
        if len(files) > 1:
            _check_slice_positions(files, name)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(files)
        try:
            return reader.Execute()
        except RuntimeError as error:
            raise InputError(f"{name}: the DICOM series cannot be read ({_last_words(str(error))}).") from None


def series_files(folder: Path, name: str) -> tuple[str, ...]:
    """Return the files of the DICOM series in a folder, sorted by position: of the one with most files; several of that
    size are refused.
    """
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader
    series = {uid: reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder))}
    if not series:
        raise InputError(f"{name} holds no DICOM series; give a folder with the files of one series, or an image file.")
    most = max(len(files) for files in series.values())
    largest = [uid for uid, files in series.items() if len(files) == most]
    if len(largest) > 1:
        described = "; ".join(f"{uid} (for example {Path(series[uid][0]).name})" for uid in sorted(largest))
        raise InputError(f"{name} holds {len(largest)} series of {most} files, keep one in the folder: {described}.")
    if len(series) > 1:
        log.warning("%s holds %d DICOM series; the largest, with %d files, is read.", name, len(series), most)
    return series[largest[0]]


def _check_slice_positions(files: tuple[str, ...], name: str) -> None:
    """Refuse series that are no box of equally spaced slices: ITK would read them into the wrong place."""
    headers = [_slice_header(file) for file in files]
    if any(header is None for header in headers):
        return  # no position in the file, as in secondary captures: nothing to compare
    positions = np.array([header[:3] for header in headers if header is not None])
    row, column = np.reshape(headers[0][3:], (2, 3))  # type: ignore[index]
    along = np.cross(row, column)
    gaps = np.diff(positions @ along)
    usual = float(np.median(np.abs(gaps)))
    if np.abs(gaps).min() < 1e-3:
        raise InputError(
            f"{name}: several images lie at the same position; keep one time point or phase in the folder."
        )
    wrong = np.flatnonzero(np.abs(np.abs(gaps) - usual) > 0.1 * usual)
    if wrong.size:
        before, after = (Path(files[wrong[0] + step]).name for step in (0, 1))
        gap = abs(gaps[wrong[0]])
        raise InputError(
            f"{name}: slices are missing or unevenly spaced, {gap:g} mm between {before} and {after} where "
            f"{usual:g} mm is usual; complete the series."
        )
    _check_no_tilt(positions, along, name)


def _check_no_tilt(positions: Array, along: Array, name: str) -> None:
    stack = positions[-1] - positions[0]
    sideways = float(np.linalg.norm(stack - (stack @ along) * along))
    if sideways > 0.01 * float(np.linalg.norm(stack)):
        raise InputError(f"{name}: the slices are shifted sideways (gantry tilt); correct the tilt and resample first.")


def _slice_header(file: str) -> list[float] | None:
    """Return position (3) and row and column direction (6) in LPS, or None."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    if not (reader.HasMetaDataKey("0020|0032") and reader.HasMetaDataKey("0020|0037")):
        return None
    text = reader.GetMetaData("0020|0032") + "\\" + reader.GetMetaData("0020|0037")
    numbers = [float(word) for word in text.split("\\")]
    return numbers if len(numbers) == 9 else None


# -------------------------------------------------------------------------------------------------------------- write


def is_sheared(affine: Array) -> bool:
    """Whether the axes of a volume (affine IJK to RAS) are not at right angles, which image files cannot hold."""
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(direction.T @ direction - np.eye(3)).max() > _SHEAR_TOLERANCE)


def image_from(array: Array, affine: Array) -> SimpleITK.Image:
    """Return an image of the array (K, J, I) at the place the affine (IJK to RAS) says; shear is refused."""
    import SimpleITK as sitk

    affine_lps = _LPS_FROM_RAS @ affine
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    direction = affine_lps[:3, :3] / spacing
    if is_sheared(affine):
        raise InputError("The volume is sheared, which image files cannot hold; resample it to straight axes first.")
    image = sitk.GetImageFromArray(_storable(array))
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(affine_lps[:3, 3].tolist())
    return image


def _storable(array: Array) -> Array:
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float32 if array.dtype.itemsize == 2 else np.float64)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def write_image(image: SimpleITK.Image, path: Path, *, compress: bool = True) -> None:
    """Write a file, whole or not at all. Compressing takes a second per 60 million bytes."""
    import SimpleITK as sitk

    if known_suffix(path).lower() not in SAVE_SUFFIXES:
        raise InputError(f"Cannot write {path}: allowed file types are {' '.join(SAVE_SUFFIXES)}.")
    with _quiet(), written_whole(path) as part:
        try:
            sitk.WriteImage(image, str(part), useCompression=compress)
        except RuntimeError as error:
            raise InputError(f"Cannot write {path}: {_last_words(str(error))}. Check folder and free space.") from None
        if _nifti_is_short(part):
            raise InputError(f"Cannot write {path}: the file was cut short. Check the free space of the disk.")


def _nifti_is_short(path: Path) -> bool:
    """Return whether a NIfTI file has less data than its header announces; False for other files.

    ITK's NIfTI code is silent about it: a truncated .nii.gz is read as zeros, and a full disk counts as written.
    """
    if known_suffix(path).lower() not in (".nii", ".nii.gz"):
        return False
    packed = known_suffix(path).lower() == ".nii.gz"
    with path.open("rb") as stream:
        packed = packed and stream.read(2) == b"\x1f\x8b"  # some programs write plain NIfTI under this name
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            expected = _nifti_length(stream.read(348))
    except (EOFError, OSError, zlib.error):
        return True
    if expected is None:
        return False
    if not packed:
        return path.stat().st_size < expected
    # The last four bytes of a gzip file are the length of its content: no need to unpack the file twice.
    with path.open("rb") as stream:
        stream.seek(-4, 2)
        announced = struct.unpack("<I", stream.read(4))[0]
    return announced != expected % 2**32 and _unpacked_length(path) < expected


def _nifti_length(header: bytes) -> int | None:
    """Return the length in bytes that a NIfTI-1 header announces for the file, None for any other header."""
    if len(header) < 348:
        return None
    order = "<" if header[:4] == struct.pack("<i", 348) else ">"
    if header[:4] != struct.pack(order + "i", 348):
        return None
    count, *sizes = struct.unpack(order + "8h", header[40:56])
    bits = struct.unpack(order + "h", header[72:74])[0]
    first = struct.unpack(order + "f", header[108:112])[0]
    return int(first) + math.prod(sizes[: max(count, 0)]) * bits // 8


def _unpacked_length(path: Path) -> int:
    """Return the length of a gzip file's content, 0 where it is damaged."""
    length = 0
    with gzip.open(path) as stream:
        try:
            while block := stream.read(1 << 20):
                length += len(block)
        except (EOFError, OSError, zlib.error):
            return 0
    return length
