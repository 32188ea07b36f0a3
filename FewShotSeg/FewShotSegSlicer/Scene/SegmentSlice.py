"""One slice of one segment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SegmentSlice:
    """Slice `index` of the volume along array `axis`, as far as it belongs to a segment."""

    segmentId: str
    axis: int
    index: int

    def meets(self, other: SegmentSlice) -> bool:
        """Whether the two slices share voxels: only parallel ones do not."""
        return self.axis != other.axis or self.index == other.index
