"""Draw the pictures of BENCHMARKS.md from its tables: `python Testing/benchmarks/draw.py`."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from FewShotSegLib.visualization.charts import boxes_chart, curves_chart

HERE = Path(__file__).parent
CLICKS = range(1, 6)


def rows_of(name: str) -> list[dict[str, str]]:
    with (HERE / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def clicks() -> bytes:
    """DSC by number of clicks: both base models, and `bundled` adapted."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows_of("adapted_bundled.csv"):
        if row["share_of_what_was_learned"] == "shipped" and row["clicks5_dsc"]:
            name = row["data_set"]
            curves[f"{name}, {row['exemplar_slices']} slices"] = {
                "bundled": _of_base(name, "bundled", "256"),
                "bundled-small": _of_base(name, "bundled-small", "160"),
                "bundled, adapted": [(turn, float(row[f"clicks{turn}_dsc"])) for turn in CLICKS],
            }
    return curves_chart(curves, "clicks").light


def _of_base(data_set: str, base: str, image_size_px: str) -> list[tuple[float, float]]:
    wanted = {"base": base, "image_size_px": image_size_px, "data_set": data_set}
    (row,) = (row for row in rows_of("base_models.csv") if wanted.items() <= row.items())
    return [(turn, float(row["one_click_dsc" if turn == 1 else f"clicks{turn}_dsc"])) for turn in CLICKS]


def support_sizes() -> bytes:
    """DSC of support sets of `bundled` by their number of slices (GMISeg, Fig. 6)."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows_of("support_sizes_bundled.csv"):
        curves[row["data_set"]][row["base"]].append((float(row["slices"]), float(row["dsc"])))
    return curves_chart(curves, "slices").light


def support_sets() -> bytes:
    """Distribution over random support sets of four slices (GMISeg, Fig. 7)."""
    columns = ("least", "lower_quartile", "median", "upper_quartile", "most")
    boxes: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for row in rows_of("support_sets.csv"):
        boxes[f"{row['data_set']}, four slices"][row["base"]] = [float(row[column]) for column in columns]
    return boxes_chart(boxes, "random sets").light


def support_tasks() -> bytes:
    """DSC by the number of data sets that GMISeg is trained on (its Fig. 5); every run is a dot."""
    boxes: dict[str, list[float]] = defaultdict(list)
    for row in rows_of("support_tasks.csv"):
        boxes[row["data_sets"]].append(float(row["dsc"]))
    return boxes_chart({"acdc, four slices": boxes}, "data sets trained on").light


def asap_lengths() -> bytes:
    """DSC by number of training steps: direct fine-tuning and ASAP, fold 0, without lesions, which no row learns."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows_of("asap_lengths.csv"):
        if row["fold"] == "0" and row["method"] != "Oracle" and row["target"] != "MS lesions":
            curves[row["target"]][row["method"]].append((float(row["steps"]), float(row["dsc"])))
    return curves_chart(curves, "steps").light


PICTURES = {
    "clicks.png": clicks,
    "support_sizes.png": support_sizes,
    "support_sets.png": support_sets,
    "support_tasks.png": support_tasks,
    "asap_lengths.png": asap_lengths,
}


def main() -> None:
    for name, draw in PICTURES.items():
        (HERE.parent / name).write_bytes(draw())


if __name__ == "__main__":
    main()
