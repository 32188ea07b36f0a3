"""Labels on the grid of another volume: by reindexing where both grids have the same voxels, else by resampling."""

from __future__ import annotations

import numpy as np

from FewShotSegLib.data.volume import Array, Volume, corners_ijk, ras_from_ijk


def resample_labelmap(labelmap: Volume, onto: Volume) -> Volume:
    """Return the labels at the voxel centres of `onto`, nearest neighbour, 0 outside. Only on explicit request."""
    index_from_index = np.linalg.inv(labelmap.affine) @ onto.affine  # (i, j, k) of onto -> (i, j, k) of labelmap
    sizes = np.array(labelmap.shape[::-1])
    result = np.zeros(onto.shape, dtype=labelmap.array.dtype)
    j, i = np.meshgrid(np.arange(onto.shape[1]), np.arange(onto.shape[2]), indexing="ij")
    for k in range(onto.shape[0]):  # one slice at a time: coordinates need 48 bytes per voxel
        plane = np.stack([i.ravel(), j.ravel(), np.full(i.size, k)], axis=1)
        nearest = np.floor(ras_from_ijk(index_from_index, plane) + 0.5).astype(np.int64)
        inside = ((nearest >= 0) & (nearest < sizes)).all(axis=1)
        at = nearest[inside]
        result[k].reshape(-1)[inside] = labelmap.array[at[:, 2], at[:, 1], at[:, 0]]
    return onto.like(result)


def reindexed(labelmap: Volume, onto: Volume, *, crop: bool = False, tolerance: float = 1e-2) -> Volume | None:
    """Return the same voxels in the index order of `onto`, or None if the two grids differ.

    Slicer flips axes of left-handed files on load, so a segmentation saved there may list the same voxels in another
    order; that is undone exactly, without interpolation. `crop`: the labelmap may cover only a part of `onto` (0
    elsewhere). `tolerance` in voxels.
    """
    exact = index_map(labelmap.affine, labelmap.shape, onto.affine, tolerance)
    if exact is None:
        return None
    landed = ras_from_ijk(exact, corners_ijk(labelmap.shape))
    low, high = landed.min(axis=0).astype(int), landed.max(axis=0).astype(int) + 1
    sizes = np.array(onto.shape[::-1])
    if (low < 0).any() or (high > sizes).any() or not (crop or ((low == 0).all() and (high == sizes).all())):
        return None
    result = np.zeros(onto.shape, dtype=labelmap.array.dtype)
    part = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))
    result[part] = turned(labelmap.array, exact)
    return onto.like(result)


def index_map(own: Array, shape: tuple[int, int, int], onto: Array, tolerance: float = 1e-2) -> Array | None:
    """Return the (4, 4) integer matrix from voxel (i, j, k) of one grid to the same voxel of the other.

    `own` and `onto` are the affines, `shape` (K, J, I) is the extent of the first grid. None if a voxel centre
    is further than `tolerance` voxels from one of the other grid. Axes may be permuted and flipped.
    """
    onto_from_own = np.linalg.inv(onto) @ own
    exact = np.eye(4)
    exact[:3] = np.rint(onto_from_own[:3])
    turn = np.abs(exact[:3, :3])
    if not (turn.sum(axis=0) == 1).all() or not (turn.sum(axis=1) == 1).all():
        return None
    corners = corners_ijk(shape)  # the difference of two affine maps is largest at a corner
    off = np.abs(ras_from_ijk(onto_from_own, corners) - ras_from_ijk(exact, corners)).max()
    return exact if off <= tolerance else None


def turned(array: Array, exact: Array) -> Array:
    """Return a view of an array (K, J, I) with its axes permuted and flipped according to an `index_map`."""
    turn = exact[:3, :3]
    source = np.abs(turn).argmax(axis=1)  # own axis that becomes axis i, j, k of the other grid
    moved = array.transpose(2, 1, 0).transpose(source)
    signs = turn[np.arange(3), source]
    return moved[tuple(slice(None, None, -1 if sign < 0 else 1) for sign in signs)].transpose(2, 1, 0)
