"""Loading and saving volumes and labelmaps.

Files and SimpleITK use LPS; the affines here are RAS, so the first two rows change sign at load and save, and nowhere
else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from FewShotSegLib.data.volume import Array, Labelmap, Volume, as_labels, label_values, log
from FewShotSegLib.errors import InputError

from .dicom import series_files
from .dicom_rtstruct import SUFFIX as RTSTRUCT_SUFFIX
from .dicom_rtstruct import is_rtstruct, load_rtstruct, rtstruct_names
from .dicom_seg import SUFFIX as DICOM_SEG_SUFFIX
from .dicom_seg import is_dicom_seg, load_dicom_seg
from .files import known_suffix
from .images import (
    SAVE_SUFFIXES,
    affine_of,
    array_of,
    image_from,
    kind_of,
    one_volume,
    picture_affine,
    read_image,
    read_volume,
    write_image,
)
from .pictures import mask_picture
from .seg_nrrd import header_fields, merged_layers, segments_from

if TYPE_CHECKING:
    import SimpleITK

SEGMENTATION_SUFFIXES = (*SAVE_SUFFIXES, DICOM_SEG_SUFFIX, RTSTRUCT_SUFFIX)


def load_volume(
    path: str | os.PathLike[str], *, channel: int | None = None, time_index: int | None = None, name: str | None = None
) -> Volume:
    """Load NRRD, NIfTI, MetaImage, PNG, JPEG, TIFF, BMP, one DICOM file, or a folder with one DICOM series.

    2-D images get K = 1 and 1 mm thickness. Colour becomes luminance unless `channel` selects one. `time_index` selects
    one volume of a 4-D file. `name` is used in error messages (default: the path).
    """
    path = Path(path)
    name = name or str(path)
    return _named_volume(*read_volume(path, channel, time_index, name), name)


def _named_volume(array: Array, affine: Array, name: str) -> Volume:
    try:
        return Volume(array, affine)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def save_volume(volume: Volume, path: str | os.PathLike[str], *, compress: bool = True) -> None:
    """Write NRRD, NIfTI or MetaImage atomically; the geometry is preserved exactly (NIfTI: in float32).

    Without `compress` it is ten times faster, for temporary files.
    """
    write_image(image_from(volume.array, volume.affine), Path(path), compress=compress)


def load_labelmap(
    path: str | os.PathLike[str], *, image: str | os.PathLike[str] | None = None, grid: Volume | None = None
) -> Labelmap:
    """Load a labelmap; segment names come from a segmentation file (.seg.nrrd, DICOM SEG, RT structure set), otherwise
    each value is its own name.

    An RT structure set has contours and no voxels: it requires the `image` on which it was drawn, a file or a folder of
    DICOM files, whose series is compared with the one in the set, or the `grid`, a volume with the target voxel grid.
    Other labelmaps ignore them.

    The layers of a segmentation are merged into one labelmap: where segments overlap the higher layer wins, and
    `Labelmap.mask` still has all voxels of each. Label values are kept if they are distinct; segments that share a
    value in different layers are numbered 1, 2, ... in the order of the file.
    """
    path = Path(path)
    name = str(path)
    if is_dicom_seg(path):
        return load_dicom_seg(path)
    if is_rtstruct(path):
        return _from_outlines(path, None if image is None else Path(image), grid)
    kind = kind_of(path, name)
    found = read_image(path, name) if kind == "volume" else None
    if found is not None and found.HasMetaDataKey("Segment0_ID"):
        header = _texts_of(found, name)
        layers = _layers_of(array_of(found), found.GetNumberOfComponentsPerPixel(), found.GetDimension(), name)
        merged, structures, hidden = merged_layers(layers, segments_from(header, len(layers), name))
        if hidden:
            count = sum(int(np.count_nonzero(mask)) for mask in hidden.values())
            log.info("%s: segments overlap in %d voxels; where one label is needed, the higher layer's.", name, count)
        return Labelmap(_named_volume(as_labels(merged, name), affine_of(found), name), structures, hidden)
    mask = mask_picture(path, name) if kind == "picture" else None
    if mask is not None:
        array, affine = mask, picture_affine(path, name)
    elif found is not None:
        array, affine = one_volume(found, affine_of(found), False, None, None, name)
    else:
        array, affine = read_volume(path, None, None, name)
    volume = _named_volume(array, affine, name)
    labels = as_labels(volume.array, name)
    return Labelmap(volume.like(labels), {value: str(value) for value in label_values(labels)})


def _from_outlines(path: Path, image: Path | None, grid: Volume | None) -> Labelmap:
    series: list[Path] = []
    if image is not None and kind_of(image, str(image)) == "dicom":
        series = series_files(image, str(image)) if image.is_dir() else [image]
    if grid is None and image is not None:
        grid = load_volume(image)
    if grid is None:
        raise InputError(
            f"{path} is an RT structure set, which has outlines and no voxels; give the image that it was drawn on "
            "(image=...), too, or save it as a segmentation (.seg.nrrd)."
        )
    return load_rtstruct(path, grid, series=series)


def load_pair(pred: str | os.PathLike[str], ref: str | os.PathLike[str]) -> tuple[Labelmap, Labelmap]:
    """Load two labelmaps of one case; one of them may be an RT structure set, which is rasterized on the grid of the
    other.
    """
    paths = Path(pred), Path(ref)
    outlined = [is_rtstruct(path) for path in paths]
    if not any(outlined):
        return load_labelmap(pred), load_labelmap(ref)
    if all(outlined):
        raise InputError(
            f"{pred} and {ref} are both RT structure sets, which have no voxels to compare; give one of them as a "
            "segmentation (.seg.nrrd, DICOM SEG)."
        )
    other = load_labelmap(paths[outlined.index(False)])
    drawn = load_rtstruct(paths[outlined.index(True)], other.volume, extend=True)
    return (drawn, other) if outlined[0] else (other, drawn)


def load_structures(path: str | os.PathLike[str]) -> dict[int, str]:
    """Return {label: name} of the structures of a labelmap; an RT structure set needs no image for that."""
    path = Path(path)
    return rtstruct_names(path) if is_rtstruct(path) else dict(load_labelmap(path).structures)


def _texts_of(image: SimpleITK.Image, name: str) -> dict[str, str]:
    """The entries of the header, which define the labels: all of them, or none."""
    try:
        return {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    except TypeError:  # SimpleITK cannot return values that are not text
        raise InputError(f"{name} cannot be read: its header is damaged; copy or export it again.") from None


def _layers_of(array: Array, components: int, dimension: int, name: str) -> list[Array]:
    """Return the layers, each (K, J, I): a file stores them as components per voxel or as a fourth dimension."""
    if components > 1:
        layers = [array[..., layer] for layer in range(components)]
    else:
        layers = list(array) if dimension == 4 else [array]
    if layers[0].ndim == 2:
        layers = [layer[np.newaxis] for layer in layers]
    if layers[0].ndim != 3 or not layers[0].size:
        raise InputError(f"{name}: a segmentation has 3 dimensions and layers, got the shape {array.shape}.")
    return [as_labels(layer, name) for layer in layers]


def save_labelmap(labelmap: Labelmap, path: str | os.PathLike[str]) -> None:
    """Write the labelmap in its own geometry; `.seg.nrrd` is a Slicer segmentation with names and colours.

    Values without a name are named by their number. Other formats store the values only.
    """
    path = Path(path)
    volume = labelmap.volume
    structures = {value: str(value) for value in label_values(volume.array)} | dict(labelmap.structures)
    array = volume.array.astype(np.uint8 if max(structures, default=0) <= 255 else np.uint16, copy=False)
    image = image_from(array, volume.affine)
    if known_suffix(path).lower() == ".seg.nrrd":
        for key, text in header_fields(array, volume.affine, structures).items():
            image.SetMetaData(key, text)
    write_image(image, path)
