"""Images of synthesized samples, for visual inspection before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from FewShotSegLib.data.structures import Color, structure_colors
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import written_whole

if TYPE_CHECKING:
    from FewShotSegLib.synthesis.plan import Sample


def contact_sheet(samples: Sequence[Sample], path: Path | str, columns: int = 6) -> None:
    """Write a PNG with every sample, its structures outlined and named, and how it was made, for visual inspection."""
    from matplotlib import rc_context

    if not samples or columns < 1:
        raise InputError(f"A contact sheet needs samples and columns, got {len(samples)} and {columns}.")
    with rc_context({"text.parse_math": False}):  # structure names are not formulas
        _draw_sheet(samples, Path(path), min(columns, len(samples)))


_MADE_BY = "FewShotSeg contact sheet"


def _draw_sheet(samples: Sequence[Sample], path: Path, columns: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(samples) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.95 * rows + 0.5), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    names = _names(samples)
    colors = structure_colors(names)
    for number, (axis, sample) in enumerate(zip(axes, samples, strict=False)):
        _draw_sample(axis, sample, colors)
        axis.set_title(f"{number}: {_caption(sample)}", fontsize=6.5)
    _legend(figure, names, colors)
    with written_whole(path) as part:
        FigureCanvasAgg(figure).print_png(part, metadata={"Software": _MADE_BY})


def is_contact_sheet(path: Path) -> bool:
    """Whether a file is an image drawn by `contact_sheet`."""
    with path.open("rb") as stream:
        return _MADE_BY.encode() in stream.read(4096)


def _draw_sample(axis: Any, sample: Sample, colors: Mapping[int, Color]) -> None:
    axis.imshow(sample.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for value in np.unique(sample.labels[sample.labels != 0]):
        axis.contour(sample.labels == value, levels=[0.5], colors=[colors[int(value)]], linewidths=0.7)
    if sample.known is not None:
        veil = np.zeros((*sample.known.shape, 4))
        veil[~sample.known] = (0.1, 0.2, 0.6, 0.35)
        axis.imshow(veil, interpolation="nearest")


def _caption(sample: Sample) -> str:
    if "caption" in sample.provenance:
        return str(sample.provenance["caption"])
    plan = sample.provenance["plan"]
    how = plan["kind"] if plan["kind"] != "pasted" else f"pasted on {plan['background_kind'].replace('_', ' ')}"
    marks = " !" if plan["own_places"] else ""
    turned = f"{plan['scene']['scale']:.2f}x {plan['scene']['rotation_deg']:+.0f} deg"
    return f"{how}{marks}, {turned}\n" + " on ".join(plan["sources"])


def _names(samples: Sequence[Sample]) -> dict[int, str]:
    names: dict[int, str] = {}
    for sample in samples:
        names.update({int(value): name for value, name in sample.provenance["structures"].items()})
    return names


def _legend(figure: Any, names: Mapping[int, str], colors: Mapping[int, Color]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colors[value], label=names[value]) for value in sorted(names)]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8, frameon=False
        )
