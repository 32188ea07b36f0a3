"""Charts for evaluation and report: scores per structure, learning curve, base versus adapted model.

Each is drawn twice, for light and dark pages, directly on a canvas: no window system, no global plotting state.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from FewShotSegLib.errors import InputError

if TYPE_CHECKING:
    from FewShotSegLib.evaluation.scoring import Row

DOTS_PER_INCH = 160
MOST_CURVES = 8


class Chart:
    """One chart as two PNG files, on white and on near-black; each is drawn when it is first read."""

    def __init__(self, drawn: Callable[[_Theme], bytes]) -> None:
        self._drawn = drawn

    @cached_property
    def light(self) -> bytes:
        return self._drawn(_LIGHT)

    @cached_property
    def dark(self) -> bytes:
        return self._drawn(_DARK)


@dataclass(frozen=True)
class _Theme:
    paper: str
    ink: str
    soft: str  # secondary text
    line: str  # grid
    first: str
    second: str
    third: str


_LIGHT = _Theme("#ffffff", "#1d2733", "#667380", "#e6eaee", "#1f7a8c", "#e08e45", "#a9b4bf")
_DARK = _Theme("#161b21", "#e7ecf1", "#93a0ad", "#2b333c", "#4fb3c6", "#f0a965", "#5c6873")
SCOPES = {"all_slices": "all slices", "oracle_slices": "slices with the structure"}
"""Scopes of scores, as in tables of scores -> as people read them."""
_FONTS = ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"]


def scores_chart(rows: Sequence[Row]) -> Chart:
    """Dice, surface Dice (NSD) and HD95: a dot per case, a bar over the interquartile range, a tick at the median."""
    if not rows:
        raise InputError("There are no scores to draw.")
    structures = list(dict.fromkeys(row.structure for row in rows))
    scopes = [scope for scope in SCOPES if any(row.scope == scope for row in rows)]
    height = 1.35 + len(structures) * (0.30 + 0.26 * len(scopes))
    longest = max(len(name) for name in structures)
    return _drawn((9.6, height), lambda figure, theme: _draw_scores(figure, theme, rows, structures, scopes, longest))


def _draw_scores(
    figure: Any, theme: _Theme, rows: Sequence[Row], structures: list[str], scopes: list[str], longest: int
) -> None:
    tolerance = f"{rows[0].tolerance_mm:g} mm"
    metrics = (("dsc", "Dice"), ("nsd", f"Surface Dice ({tolerance})"), ("hd95_mm", "HD95 in mm"))
    axes = figure.subplots(1, 3, sharey=True)
    colors = dict(zip(scopes, (theme.first, theme.second), strict=False))
    for ax, (name, title) in zip(axes, metrics, strict=True):
        for at, structure in enumerate(structures):
            for lane, scope in enumerate(scopes):
                values = [getattr(r, name) for r in rows if r.structure == structure and r.scope == scope]
                y = at + (lane - (len(scopes) - 1) / 2) * 0.36
                _strip(ax, np.array(values), y, colors[scope], theme)
        _quiet_axes(ax, theme, grid="x")
        ax.set_title(title, loc="left", fontsize=10, color=theme.ink, pad=8)
        ax.set_xlim(*((-0.02, 1.03) if name != "hd95_mm" else (0, _upper([r.hd95_mm for r in rows]))))
    axes[0].set_yticks(range(len(structures)), structures, fontsize=10, color=theme.ink)
    axes[0].set_ylim(len(structures) - 0.5, -0.5)
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(
        left=min(0.03 + 0.0088 * longest, 0.32), right=0.985, top=1 - 0.42 / height, bottom=0.72 / height, wspace=0.13
    )
    _legend(figure, theme, [(colors[s], SCOPES[s]) for s in scopes])


def _strip(ax: Any, values: Any, y: float, color: str, theme: _Theme) -> None:
    if not values.size:
        return
    low, middle, high = np.percentile(values, [25, 50, 75])
    ax.plot([low, high], [y, y], color=color, alpha=0.28, linewidth=9, solid_capstyle="round", zorder=2)
    offsets = (np.arange(values.size) * 0.618034 % 1.0 - 0.5) * 0.14 if values.size > 1 else np.zeros(1)
    ax.scatter(values, y + offsets, s=17, color=color, edgecolor=theme.paper, linewidth=0.6, zorder=3, clip_on=False)
    ax.plot([middle, middle], [y - 0.15, y + 0.15], color=theme.ink, linewidth=1.8, solid_capstyle="round", zorder=4)


def _upper(values: list[float]) -> float:
    return max(values) * 1.06 or 1.0


def learning_chart(
    steps: Sequence[float],
    loss: Sequence[float],
    held_out: Sequence[tuple[float, float]] = (),
    best: float | None = None,
) -> Chart:
    """Loss per step, raw and smoothed, and below it Dice (step, value) on held-out samples; `best` is marked."""
    if len(steps) != len(loss) or len(steps) == 0:
        raise InputError(f"A learning curve needs as many losses as steps, got {len(loss)} and {len(steps)}.")
    return _drawn((9.6, 3.4), lambda figure, theme: _draw_learning(figure, theme, steps, loss, held_out, best))


def _draw_learning(
    figure: Any,
    theme: _Theme,
    steps: Sequence[float],
    loss: Sequence[float],
    held_out: Sequence[tuple[float, float]],
    best: float | None,
) -> None:
    axes = figure.subplots(1, 2 if len(held_out) else 1, squeeze=False)[0]
    axes[0].plot(steps, loss, color=theme.first, alpha=0.3, linewidth=0.9)
    axes[0].plot(steps, _smooth(np.asarray(loss, dtype=np.float64)), color=theme.first, linewidth=2.2)
    axes[0].set_title("Training loss", loc="left", fontsize=10, color=theme.ink, pad=8)
    axes[0].set_ylim(bottom=0)
    if len(held_out):
        at, dice = zip(*held_out, strict=True)
        axes[1].plot(at, dice, color=theme.second, linewidth=2.2, marker="o", markersize=4.5, clip_on=False)
        axes[1].set_title("Dice on held-out samples", loc="left", fontsize=10, color=theme.ink, pad=8)
        axes[1].set_ylim(0, 1.02)
        if best is not None:
            value = float(np.interp(best, at, dice))
            axes[1].scatter([best], [value], s=110, facecolor="none", edgecolor=theme.ink, linewidth=1.4, zorder=4)
            axes[1].annotate(
                f"kept: {value:.2f}",
                (best, value),
                (0, -18),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=theme.ink,
            )
    for ax in axes:
        _quiet_axes(ax, theme, grid="y")
        ax.set_xlabel("step", fontsize=9, color=theme.soft)
        ax.margins(x=0.02)
    figure.subplots_adjust(left=0.05, right=0.985, top=0.88, bottom=0.17, wspace=0.13)


def _smooth(values: Any) -> Any:
    """Running mean over about a tenth of the curve, shorter at both ends."""
    half = max(len(values) // 20, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def gallery_chart(pictures: Mapping[str, Any]) -> Chart:
    """Images (H, W, 3) uint8 stacked vertically, each with its title."""
    if not pictures:
        raise InputError("A gallery needs at least one picture.")
    heights = [9.0 * picture.shape[0] / picture.shape[1] + 0.35 for picture in pictures.values()]
    return _drawn((9.6, sum(heights) + 0.2), lambda figure, theme: _draw_gallery(figure, theme, pictures, heights))


def _draw_gallery(figure: Any, theme: _Theme, pictures: Mapping[str, Any], heights: Sequence[float]) -> None:
    total, top = figure.get_figheight(), figure.get_figheight() - 0.1
    for (title, picture), height in zip(pictures.items(), heights, strict=True):
        ax = figure.add_axes((0.03, (top - height) / total, 0.94, (height - 0.35) / total))
        ax.imshow(picture, interpolation="nearest", aspect="auto")
        ax.set_axis_off()
        ax.set_title(title, loc="left", fontsize=10, color=theme.ink, pad=5)
        top -= height


MOST_ARMS = 24


def choices_chart(summary: Mapping[str, Any]) -> Chart:
    """Which auxiliary data were selected, turn by turn, and their gradients' similarity with the target's.

    `summary` is the return value of `turns.Turns.summary`. Most selected arms come first; at most `MOST_ARMS`.
    """
    plays = [row for row in summary["turns"] if row["turn"] > 0]
    if not plays:
        raise InputError("A picture of choices needs at least one turn with auxiliary data.")
    counts = {name: sum(row["name"] == name for row in plays) for name in summary["arms"]}
    shown = sorted(counts, key=lambda name: -counts[name])[:MOST_ARMS]
    size = (9.6, 1.15 + 0.24 * len(shown))
    return _drawn(size, lambda figure, theme: _draw_choices(figure, theme, plays, shown, counts, summary))


def _draw_choices(
    figure: Any,
    theme: _Theme,
    plays: Sequence[Mapping[str, Any]],
    shown: Sequence[str],
    counts: Mapping[str, int],
    summary: Mapping[str, Any],
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    low = 0.55 / figure.get_figheight()
    high = 1 - 0.42 / figure.get_figheight()
    ax = figure.add_axes((0.25, low, 0.60, high - low))
    bars = figure.add_axes((0.87, low, 0.11, high - low))
    agreement = LinearSegmentedColormap.from_list("agreement", [theme.second, theme.third, theme.first])
    rows = {name: at for at, name in enumerate(shown)}
    drawn = [row for row in plays if row["name"] in rows]
    cosines = [row["cosine"] or 0.0 for row in drawn]
    most = max([abs(value) for value in cosines] + [0.1])
    marks = ax.scatter(
        [row["turn"] for row in drawn],
        [rows[row["name"]] for row in drawn],
        c=cosines,
        cmap=agreement,
        vmin=-most,
        vmax=most,
        s=22,
        marker="s",
        linewidths=0,
    )
    left_out = summary.get("left_out", {})
    names = [f"{name} (left out)" if name in left_out else name for name in shown]
    ax.set_yticks(range(len(shown)), [name if len(name) < 34 else f"{name[:32]}..." for name in names])
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_xlim(0, max(row["turn"] for row in plays) + 1)
    ax.set_xlabel("turn", fontsize=9, color=theme.soft)
    ax.set_title("Auxiliary data trained with, turn by turn", loc="left", fontsize=10, color=theme.ink, pad=8)
    _quiet_axes(ax, theme, grid="y")
    _draw_counts(bars, theme, [counts[name] for name in shown], ax.get_ylim())
    _draw_scale(figure, theme, marks, most)


def _draw_counts(ax: Any, theme: _Theme, counts: Sequence[int], limits: tuple[float, float]) -> None:
    """Selection counts of the arms, as bars next to the rows."""
    ax.barh(range(len(counts)), counts, color=theme.third, height=0.55)
    ax.set_ylim(limits)
    ax.set_yticks([])
    ax.set_title("turns", loc="left", fontsize=10, color=theme.ink, pad=8)
    _quiet_axes(ax, theme, grid="x")


def _draw_scale(figure: Any, theme: _Theme, marks: Any, most: float) -> None:
    """Colour scale of the marks."""
    place = figure.add_axes((0.02, 0.16 / figure.get_figheight(), 0.14, 0.012))
    bar = figure.colorbar(marks, cax=place, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.set_ticks([-most, most], labels=[f"{-most:.2f}", f"{most:.2f}"])
    bar.ax.tick_params(length=0, labelsize=8, colors=theme.soft, pad=2)
    bar.ax.set_title("agreement (cosine)", fontsize=8, color=theme.soft, pad=4)


Curves = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]


def curves_chart(groups: Curves, x_label: str) -> Chart:
    """Up to eight curves {name: [(x, Dice)]} in one panel per group, x axis with powers of two.

    Curves after the fourth repeat the colours, with dashed lines and open markers.
    """
    names = {name for curves in groups.values() for name in curves}
    if not names:
        raise InputError("There are no curves to draw.")
    if len(names) > MOST_CURVES:
        raise InputError(f"A picture shows at most {MOST_CURVES} curves, got {len(names)}; draw some of them.")
    return _drawn((2.4 * max(len(groups), 2), 3.2), lambda figure, theme: _draw_curves(figure, theme, groups, x_label))


def _draw_curves(figure: Any, theme: _Theme, groups: Curves, x_label: str) -> None:
    names = list(dict.fromkeys(name for curves in groups.values() for name in curves))
    colors = dict(zip(names, (theme.first, theme.second, theme.ink, theme.third) * 2, strict=False))
    again = frozenset(names[4:])
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for ax, (group, curves) in zip(axes, groups.items(), strict=True):
        for name, points in curves.items():
            x, y = zip(*points, strict=True)
            way = {"linestyle": "--", "markerfacecolor": theme.paper} if name in again else {}
            ax.plot(x, y, color=colors[name], linewidth=2.0, marker="o", markersize=4.0, **way)
        _quiet_axes(ax, theme, grid="y")
        ticks = sorted({x for curves in groups.values() for points in curves.values() for x, _ in points})
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=9)
        ax.minorticks_off()
        ax.set_ylim(0, 1)
        ax.set_title(group, loc="left", fontsize=10, color=theme.ink, pad=8)
        ax.set_xlabel(x_label, fontsize=9, color=theme.soft)
    axes[0].set_ylabel("Dice", fontsize=9, color=theme.soft)
    lines = -(-len(names) // 4)
    bottom = 0.23 + 0.06 * lines
    figure.subplots_adjust(left=0.13 / len(groups) ** 0.5, right=0.985, top=0.88, bottom=bottom, wspace=0.12)
    _legend(figure, theme, [(colors[name], name) for name in names], open_marks=again)


Boxes = Mapping[str, Mapping[str, Sequence[float]]]


def boxes_chart(groups: Boxes, x_label: str, label: str = "Dice") -> Chart:
    """Distributions of values in [0, 1] as box plots, {group: {name: values}}: a panel per group, a box per name.

    A box is the interquartile range with the median, whiskers extend to the minimum and maximum, and every value is a
    dot.
    """
    if not groups or not all(boxes and all(len(values) for values in boxes.values()) for boxes in groups.values()):
        raise InputError("Boxes need at least one value each.")
    return _drawn(
        (2.4 * max(len(groups), 2), 3.0), lambda figure, theme: _draw_boxes(figure, theme, groups, x_label, label)
    )


def _draw_boxes(figure: Any, theme: _Theme, groups: Boxes, x_label: str, label: str) -> None:
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for ax, (group, boxes) in zip(axes, groups.items(), strict=True):
        line = {"color": theme.first, "linewidth": 1.4}
        ax.boxplot(
            list(boxes.values()),
            whis=(0, 100),
            widths=0.55,
            showfliers=False,
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops={"color": theme.ink, "linewidth": 2.0},
        )
        for number, values in enumerate(boxes.values(), 1):
            aside = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else [0.0]
            ax.plot(number + np.asarray(aside), values, "o", color=theme.second, markersize=2.4, alpha=0.8)
        _quiet_axes(ax, theme, grid="y")
        ax.set_xticks(range(1, len(boxes) + 1), list(boxes), fontsize=9)
        ax.set_ylim(0, 1)
        ax.set_title(group, loc="left", fontsize=10, color=theme.ink, pad=8)
        ax.set_xlabel(x_label, fontsize=9, color=theme.soft)
    axes[0].set_ylabel(label, fontsize=9, color=theme.soft)
    figure.subplots_adjust(left=0.13 / len(groups) ** 0.5, right=0.985, top=0.88, bottom=0.2, wspace=0.12)


def bars_chart(groups: Mapping[str, Mapping[str, float]], label: str = "Dice") -> Chart:
    """Bars side by side: {"base model": {"liver": 0.61, ...}, "adapted": {...}}; the last group is highlighted."""
    structures = list(dict.fromkeys(name for group in groups.values() for name in group))
    if not structures or len(groups) > 3:
        raise InputError(f"Bars need one to three groups of at least one value, got {len(groups)} groups.")
    return _drawn(
        (9.6, 3.3 if len(structures) < 9 else 3.9),
        lambda figure, theme: _draw_bars(figure, theme, groups, structures, label),
    )


def _draw_bars(
    figure: Any, theme: _Theme, groups: Mapping[str, Mapping[str, float]], structures: list[str], label: str
) -> None:
    ax = figure.subplots()
    colors = (theme.third, theme.second, theme.first)[-len(groups) :] if len(groups) > 2 else (theme.third, theme.first)
    colors = colors[-len(groups) :]
    width = 0.74 / len(groups)
    for order, (group, color) in enumerate(zip(groups.values(), colors, strict=True)):
        at = np.arange(len(structures)) + (order - (len(groups) - 1) / 2) * width
        heights = [group.get(name, np.nan) for name in structures]
        ax.bar(at, heights, width * 0.9, color=color, zorder=2)
        for x, height in zip(at, heights, strict=True):
            if np.isfinite(height):
                text = f"{height:.2f}"
                ax.text(x, height + 0.012, text, ha="center", va="bottom", fontsize=8.5, color=theme.ink)
    tilt = {"rotation": 25, "ha": "right"} if max(map(len, structures)) * len(structures) > 95 else {}
    ax.set_ylim(0, 1.08)
    ax.set_xlim(-0.6, len(structures) - 0.4)
    _quiet_axes(ax, theme, grid="y")
    ax.set_xticks(range(len(structures)), structures, fontsize=10, color=theme.ink, **tilt)
    ax.set_title(label, loc="left", fontsize=10, color=theme.ink, pad=8)
    figure.subplots_adjust(left=0.045, right=0.985, top=0.89, bottom=0.36 if tilt else 0.22)
    _legend(figure, theme, list(zip(colors, groups, strict=True)))


def _quiet_axes(ax: Any, theme: _Theme, grid: str) -> None:
    ax.set_facecolor(theme.paper)
    ax.grid(axis=grid, color=theme.line, linewidth=0.9, zorder=0)
    ax.set_axisbelow(True)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.tick_params(length=0, labelsize=9, colors=theme.soft)


def _legend(
    figure: Any, theme: _Theme, entries: Sequence[tuple[str, str]], open_marks: frozenset[str] = frozenset()
) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            markersize=7,
            color=color,
            markerfacecolor=theme.paper if text in open_marks else color,
        )
        for color, text in entries
    ]
    figure.legend(
        marks,
        [text for _, text in entries],
        loc="lower right",
        ncols=min(len(entries), 4) if open_marks else len(entries),
        frameon=False,
        fontsize=9.5,
        labelcolor=theme.ink,
        bbox_to_anchor=(0.99, 0.0),
        handletextpad=0.2,
        columnspacing=1.6,
    )


def _drawn(size_inches: tuple[float, float], draw: Callable[[Any, _Theme], None]) -> Chart:
    return Chart(lambda theme: _png(size_inches, draw, theme))


def _png(size_inches: tuple[float, float], draw: Callable[[Any, _Theme], None], theme: _Theme) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    installed = _installed_fonts()
    fonts = [name for name in _FONTS if name in installed] or ["sans-serif"]
    with rc_context({"font.family": fonts, "text.parse_math": False}):  # structure names are not formulas
        figure = Figure(figsize=size_inches, facecolor=theme.paper)
        canvas = FigureCanvasAgg(figure)
        draw(figure, theme)
        stream = io.BytesIO()
        # Omitting the library version makes the output reproducible.
        canvas.figure.savefig(stream, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return stream.getvalue()


def _installed_fonts() -> set[str]:
    from matplotlib import font_manager

    return {font.name for font in font_manager.fontManager.ttflist}
