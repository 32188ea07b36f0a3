"""Image files and DICOM folders: read completely and with correct geometry, or rejected with the reason.

This is the only place that converts files to arrays: SimpleITK uses LPS, the affines here and elsewhere are RAS.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from FewShotSegLib.errors import InputError

from .dicom import LPS_FROM_RAS, DicomVolume, quiet, read_file, read_series
from .files import known_suffix, written_whole
from .headers import check_volume_file
from .layouts import Wrong
from .names import channel_number, stem
from .nifti import as_version_1
from .pictures import PICTURE_SUFFIXES, check_picture, grey_picture, has_size

if TYPE_CHECKING:
    import SimpleITK

Array = np.ndarray[Any, np.dtype[Any]]

VOLUME_SUFFIXES = (".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd")
DICOM_SUFFIXES = (".dcm", ".ima")
# One-file formats only: a header with a detached data file cannot be replaced atomically.
SAVE_SUFFIXES = (".nrrd", ".seg.nrrd", ".nii", ".nii.gz", ".mha")

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_SHEAR_TOLERANCE = 1e-4  # cosine between two axes; 0.05 mm over 500 mm
_LARGEST_MM = 1e7


# --------------------------------------------------------------------------------------------------------------- read


def checked_path(path: Path, name: str) -> Path:
    """Return the path of an input: an existing file or folder with a name that every library can open."""
    try:
        os.fspath(path).encode("utf-8")
        mode = path.stat().st_mode
    except UnicodeEncodeError:
        raise InputError(
            f"{name} has a name that is not UTF-8, which not every library here can open; rename it."
        ) from None
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{name} cannot be read: {reason}.") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{name} is no file but a pipe, a device or the like; save it as a file.")
    return path


def kind_of(path: Path, name: str) -> str:
    """Return "dicom", "picture" or "volume"; anything else is rejected."""
    checked_path(path, name)
    suffix = known_suffix(path).lower().removeprefix(".seg").removeprefix(".rtstruct")
    if path.is_dir() or suffix in DICOM_SUFFIXES:
        return "dicom"
    if suffix in PICTURE_SUFFIXES:
        return "picture"
    if suffix in VOLUME_SUFFIXES:
        return "volume"
    allowed = " ".join(VOLUME_SUFFIXES + PICTURE_SUFFIXES + DICOM_SUFFIXES)
    raise InputError(f"{name} has an unknown file type; allowed are {allowed} and a folder of DICOM files.")


def read_volume(path: Path, channel: int | None, time_index: int | None, name: str) -> tuple[Array, Array]:
    """Return the values (K, J, I) of one channel and one time, and the affine (IJK to RAS) of any file or folder.

    Colour becomes luminance unless a channel is selected. Channels are components of a voxel; or the volumes of a 4-D
    file, as in data sets with several sequences; or separate files, numbered as in nnU-Net.
    """
    kind = kind_of(path, name)
    if kind == "dicom":
        found = read_series(path, name) if path.is_dir() else read_file(path, name)
        return _checked(*_one_of(found, channel, time_index, name), name)
    grey = grey_picture(path, name) if kind == "picture" else None
    if grey is not None:
        return _one_time(grey, 3, time_index, name), picture_affine(path, name)
    image = read_image(path, name)
    affine = affine_of(image) if kind == "volume" or has_size(path) else LPS_FROM_RAS.copy()
    if channel and image.GetNumberOfComponentsPerPixel() == 1 and image.GetDimension() < 4:
        channel = _named_channel(path, channel, name)
    return one_volume(image, affine, kind == "picture", channel, time_index, name)


def _named_channel(path: Path, channel: int, name: str) -> int | None:
    """None if a single-channel file is the selected channel by its name; others are rejected."""
    number = channel_number(stem(path))
    if number is None or number == channel:
        return channel if number is None else None
    other = path.name.replace(f"_{number:04d}", f"_{channel:04d}")
    raise InputError(f"{name} is channel {number} by its name, and channel {channel} was chosen; give {other}.")


def one_volume(
    image: SimpleITK.Image, affine: Array, is_picture: bool, channel: int | None, time_index: int | None, name: str
) -> tuple[Array, Array]:
    """Return the values (K, J, I) of one channel and one time point of a loaded image, and its affine."""
    array, components, dimension = array_of(image), image.GetNumberOfComponentsPerPixel(), image.GetDimension()
    channel, time_index = _along_fourth(array, components, dimension, channel, time_index)
    array = _one_channel(array, components, is_picture, channel, name)
    return _checked(_one_time(array, dimension, time_index, name), affine, name)


def _along_fourth(
    array: Array, components: int, dimension: int, channel: int | None, time_index: int | None
) -> tuple[int | None, int | None]:
    """Channel and time index for stacked scalar volumes, which may be sequences or time points."""
    if components == 1 and dimension == 4 and len(array) > 1 and time_index is None:
        return None, channel
    return channel, time_index


def picture_affine(path: Path, name: str) -> Array:
    """Return IJK->RAS (4, 4) of a picture: pixels of 1 mm, unless its header has a valid pixel size."""
    return affine_of(read_image(path, name)) if has_size(path) else LPS_FROM_RAS.copy()


def _one_of(found: DicomVolume, channel: int | None, time_index: int | None, name: str) -> tuple[Array, Array]:
    components = found.array.shape[4] if found.array.ndim == 5 else 1
    channel, time_index = _along_fourth(found.array, components, 4, channel, time_index)
    array = _one_channel(found.array, components, True, channel, name)
    return _one_time(array, 4, time_index, name), found.affine


def _checked(array: Array, affine: Array, name: str) -> tuple[Array, Array]:
    """Reject early what cannot be saved with the same geometry."""
    if np.abs(affine).max() > _LARGEST_MM or not np.isfinite(affine).all():
        raise InputError(
            f"{name} has an impossible position or voxel size in its header; convert it again from the original files."
        )
    if np.linalg.norm(affine[:3, :3], axis=0).all() and is_sheared(affine):
        raise InputError(
            f"{name} is sheared: its axes are not at right angles, as of a CT with tilted gantry; correct the tilt "
            "first, for example with dcm2niix, and use the file it writes."
        )
    return array, affine


def read_image(path: Path, name: str) -> SimpleITK.Image:
    """Return the image in a non-DICOM file; `name` is used in error messages."""
    import SimpleITK as sitk

    if kind_of(path, name) == "picture":
        check_picture(path, name)
    else:
        check_volume_file(path, name)
    try:
        if known_suffix(path).lower() not in (".nii", ".nii.gz"):
            with quiet():
                return sitk.ReadImage(str(path))
        with quiet(), as_version_1(path) as readable:
            return sitk.ReadImage(str(readable))
    except Wrong as error:
        raise InputError(f"{name} cannot be read: {error}.") from None
    except RuntimeError as error:
        raise InputError(_cannot_read(name, str(error))) from None


def _cannot_read(name: str, reason: str) -> str:
    if "orthonormal" in reason:
        return f"{name} has a sheared or broken orientation in its header; convert it again from the original files."
    return f"{name} cannot be read ({_last_words(reason)}); the file is damaged or not what its name says."


def _last_words(reason: str) -> str:
    """Return the last line of an ITK exception, which has the reason, without addresses."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return re.sub(r"^(ITK|sitk::)?\s*ERROR:\s*|\w+\(0x[0-9a-f]+\):\s*", "", lines[-1] if lines else "no reason given")


def array_of(image: SimpleITK.Image) -> Array:
    """Return all values: (J, I), (K, J, I) or (T, K, J, I), with channels, if any, last."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(image)


def _one_channel(array: Array, components: int, picture: bool, channel: int | None, name: str) -> Array:
    if components == 1:
        if channel not in (None, 0):
            raise InputError(f"{name} has one channel, got channel {channel}; leave the channel out.")
        return array
    if channel is not None:
        if not 0 <= channel < components:
            raise InputError(f"{name} has channels 0 to {components - 1}, got {channel}.")
        return array[..., channel]
    if picture and components == 2:  # grey and alpha
        return array[..., 0]
    if components in (3, 4) and (picture or array.dtype == np.uint8):
        return (array[..., :3] @ _LUMINANCE).astype(np.float32)
    raise InputError(
        f"{name} has {components} values per voxel; choose one with a channel from 0 to {components - 1} "
        "(--channel N, channel=N), or convert it in Slicer's module Vector to Scalar Volume."
    )


def _one_time(array: Array, dimension: int, time_index: int | None, name: str) -> Array:
    """Return (K, J, I) from a file of 2, 3 or 4 dimensions."""
    if dimension > 4:
        raise InputError(f"{name} has {dimension} dimensions; volumes have 2, 3 or, with a time index, 4.")
    count = array.shape[0] if dimension == 4 else 1
    if time_index is not None and not 0 <= time_index < count:
        raise InputError(f"{name} has time indices 0 to {count - 1}, got {time_index}.")
    if count > 1 and time_index is None:
        raise InputError(
            f"{name} is 4-D with {count} volumes; choose one with a time index from 0 to {count - 1} (--time-index N, "
            "time_index=N; of several sequences also --channel N, channel=N), or load it in Slicer and choose it there."
        )
    if dimension == 4:
        return array[time_index or 0]
    return array[np.newaxis] if dimension == 2 else array


def affine_of(image: SimpleITK.Image) -> Array:
    """Return IJK->RAS (4, 4); a 2-D image is in the plane z = 0 with 1 mm thickness."""
    dimension = image.GetDimension()
    used = min(dimension, 3)
    direction, spacing, origin = np.eye(3), np.ones(3), np.zeros(3)
    direction[:used, :used] = np.reshape(image.GetDirection(), (dimension, dimension))[:used, :used]
    spacing[:used] = image.GetSpacing()[:used]
    origin[:used] = image.GetOrigin()[:used]
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = direction * spacing
    affine_lps[:3, 3] = origin
    return LPS_FROM_RAS @ affine_lps


# -------------------------------------------------------------------------------------------------------------- write


def is_sheared(affine: Array) -> bool:
    """Whether the axes of a volume (affine IJK to RAS) are not orthogonal, which image files cannot represent."""
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(direction.T @ direction - np.eye(3)).max() > _SHEAR_TOLERANCE)


def image_from(array: Array, affine: Array) -> SimpleITK.Image:
    """Return an image of the array (K, J, I) with the geometry of the affine (IJK to RAS); shear is rejected."""
    import SimpleITK as sitk

    affine_lps = LPS_FROM_RAS @ affine
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
    """Write a file atomically. Compression takes a second per 60 million bytes."""
    import SimpleITK as sitk

    if known_suffix(path).lower() not in SAVE_SUFFIXES:
        raise InputError(f"Cannot write {path}: allowed file types are {' '.join(SAVE_SUFFIXES)}.")
    with quiet(), written_whole(path) as part:
        try:
            sitk.WriteImage(image, str(part), useCompression=compress)
        except RuntimeError as error:
            raise InputError(f"Cannot write {path}: {_last_words(str(error))}. Check folder and free space.") from None
        try:
            check_volume_file(part, "It")  # ITK's NIfTI code does not detect a full disk
        except InputError:
            raise InputError(
                f"Cannot write {path}: the file was cut short. Check the free space of the disk."
            ) from None
