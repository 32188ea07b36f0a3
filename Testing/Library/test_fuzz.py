"""Everything that comes from outside as text, changed at random: it works, or one sentence says why not.

FEWSHOTSEG_FUZZ=10000 tries as many of each kind; `make campaign` does.
"""

from __future__ import annotations

import copy
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.job import from_dict
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import load_adapter, read_card, save_adapter
from FewShotSegLib.io.json_files import read_json
from FewShotSegLib.methods import METHODS, method
from FewShotSegLib.sam.compact import CompactArchitecture
from FewShotSegLib.worker.__main__ import Channel, Requests, Worker, read
from Testing.conftest import TINY_COMPACT

EXAMPLES = int(os.environ.get("FEWSHOTSEG_FUZZ", "70"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Copied, because a second change may alter a list or table that the first one put in.
ODD = st.sampled_from(
    [None, True, -1, 0, 2**63, 10**18, 1e300, -0.5, "", "a", "~nobody/x", "x" * 5000, "\u202e", [], [[]], {}, {"": 1}]
).map(copy.deepcopy) | st.recursive(
    st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)

JOBS: list[dict[str, Any]] = [
    {
        "kind": "adapt",
        "out": "a.safetensors",
        "exemplars": [{"image": "a.nrrd", "labelmap": "b.nrrd", "axis": "k", "slices": [1], "structures": {"1": "x"}}],
        "recipe": {"steps": 4},
        "intensity": {"kind": "window", "low": 0, "high": 1},
        "seed": 1,
        "max_seconds": 2.5,
    },
    {"kind": "segment", "images": ["a.nrrd"], "out": "o", "prompts": "p.json", "min_island_ml": 0.5, "axis": "j"},
    {"kind": "evaluate", "pred": "p", "ref": "r", "out": "m.csv", "structures": {"1": "liver"}, "tolerance_mm": 2},
]
PROMPT: dict[str, Any] = {
    "axis": "k",
    "index": 2,
    "structure": "disc",
    "points_ijk": [[1, 1, 2]],
    "point_labels": [1],
    "box_ijk": [[0, 0, 2], [2, 2, 2]],
    "mask": {"shape": [4, 4], "runs": [3, 5, 8]},
}
VOLUME = Volume(np.zeros((4, 4, 4), np.int16), np.eye(4))


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in tables and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inner for place in places(part, (*at, key)))]


@st.composite
def changed(draw: Callable[..., Any], values: list[Any]) -> Any:
    """One of the values with one or two of its parts replaced, left out or renamed."""
    value = copy.deepcopy(draw(st.sampled_from(values)))
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(value)))
        if not place:
            return draw(ODD)
        *above, last = place
        holder = value
        for key in above:
            holder = holder[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "rename"]))
        if action == "replace" or isinstance(holder, list):
            holder[last] = draw(ODD)
        else:
            part = holder.pop(last)
            if action == "rename":
                holder[draw(st.text(max_size=4))] = part
    return value


def works_or_says(call: Callable[[], Any]) -> None:
    said = "fine"
    try:
        call()
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert 3 < len(said) < 20_000


@FUZZ
@given(changed(JOBS))
def test_jobs(values: Any) -> None:
    works_or_says(lambda: from_dict(values))


@FUZZ
@given(changed([PROMPT]))
def test_prompts(values: Any) -> None:
    works_or_says(lambda: Prompt.from_dict(values, VOLUME).check_inside(VOLUME))


@FUZZ
@given(st.sampled_from(list(METHODS)), st.data())
def test_recipes(name: str, data: st.DataObject) -> None:
    from FewShotSegLib.data import recipe

    made = recipe.to_dict(method(name).Recipe())
    works_or_says(lambda: recipe.from_dict(method(name).Recipe, data.draw(changed([made]))))


def an_adapter() -> Adapter:
    return Adapter(
        {"w": np.arange(6, dtype=np.float32)},
        method="lora",
        recipe={"steps": 4},
        base_model="b",
        base_sha256="0" * 64,
        structures={1: "liver"},
        intensity=IntensitySpec("window", -125, 275),
        image_size=64,
        seed=0,
        axis=0,
        provenance={"exemplars": [{"name": "exemplar 1"}]},
    )


@FUZZ
@given(st.data())
def test_cards_of_adapters(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(an_adapter(), path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    card = data.draw(changed([json.loads(header["__metadata__"]["fewshotseg"])]))
    header["__metadata__"]["fewshotseg"] = json.dumps(card)
    made = json.dumps(header).encode()
    path.write_bytes(len(made).to_bytes(8, "little") + made + content[8 + length :])
    works_or_says(lambda: read_card(path))
    works_or_says(lambda: load_adapter(path))


@FUZZ
@given(changed([TINY_COMPACT.to_dict() | {"widths": list(TINY_COMPACT.widths)}]))
def test_cards_of_models(card: Any) -> None:
    if isinstance(card, dict):
        card.pop("kind", None)
        works_or_says(lambda: CompactArchitecture.from_card(card, "m.safetensors"))


REQUESTS: list[dict[str, Any]] = [
    {"id": 1, "op": "predict", "volume": "v", "prompt": PROMPT, "base": "tiny", "adapter": None, "view": "red"},
    {"id": 2, "op": "volume", "volume": "v", "path": "/none.npy", "affine": np.eye(4).tolist(), "intensity": None},
    {"id": 3, "op": "folder", "path": "/none", "holds": "volumes"},
    {"id": 4, "op": "suggest", "volume": "v", "axis": "k", "known": [1, 2]},
    {"id": 5, "op": "propagate", "volume": "v", "prompts": [PROMPT], "direction": 1, "count": 3},
    {"id": 6, "op": "encode", "volume": "v", "axis": "k", "index": 0},
    {"id": 7, "op": "batch", "job": {"kind": "segment"}},
    {"id": 8, "op": "preview", "job": {}, "sheet": "s.png", "count": 3},
    {"id": 9, "op": "cancel", "target": 1},
]


@FUZZ
@given(st.lists(changed(REQUESTS).map(json.dumps) | st.text(max_size=30) | st.just("[" * 5000), max_size=3))
def test_lines_to_the_worker(lines: list[str]) -> None:
    """Each is answered, and the process is there for the next one."""
    given_in = io.StringIO(
        "\n".join([*lines, json.dumps({"id": 77, "op": "folder", "path": "/none", "holds": "volumes"})])
    )
    out = io.StringIO()
    channel, requests, finished = Channel(out), Requests(), threading.Event()
    finished.set()
    close, requests.close = requests.close, lambda: None  # type: ignore[method-assign]
    read(given_in, channel, requests, finished)
    requests.add({"op": "shutdown", "id": 78})
    Worker(channel, requests).run()
    close()
    answers = [json.loads(line) for line in out.getvalue().split("\n")[:-1]]
    assert [one for one in answers if one.get("kind") == "defect"] == []
    assert {one["id"] for one in answers if isinstance(one["id"], int)} >= {77, 78} or any(
        '"shutdown"' in line for line in lines
    )


@FUZZ
@given(st.binary(max_size=60))
def test_files_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    works_or_says(lambda: read_json(tmp_path / "a.json", "the job a.json"))


def test_the_number_of_examples_is_that_of_the_suite_or_of_the_campaign() -> None:
    assert EXAMPLES * 8 >= 500
    with pytest.raises(InputError):
        from_dict({"kind": []})
