"""Adapting and segmenting from Python gives what the same job gives with files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.api.adapter import Adapter
from FewShotSegLib.api.inputs import make_exemplar
from FewShotSegLib.api.runs import adapt, segment, segment_folder
from FewShotSegLib.data.job import AdaptJob, ExemplarFiles, SegmentJob
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegLib.io.volumes import load_labelmap, load_volume
from FewShotSegLib.jobs.run import run
from Testing.conftest import QUICK, Listener, write_discs


def test_adapt_makes_the_adapter_of_the_same_job(
    a_tiny_base: str, a_case: tuple[Path, Path], tmp_path: Path, a_listener: Listener
) -> None:
    files = ExemplarFiles(str(a_case[0]), str(a_case[1]), axis="k", slices=(1, 3))
    run(AdaptJob(str(tmp_path / "a.safetensors"), exemplars=(files,), base="tiny", recipe=QUICK, device="cpu"))
    exemplar = load_exemplar(*a_case, axis="k", slices=(1, 3))
    made = adapt([exemplar], base="tiny", recipe=QUICK, device="cpu", progress=a_listener)
    assert made.digest == Adapter.load(tmp_path / "a.safetensors").digest
    assert any(progress.metrics for progress in a_listener.heard)
    assert made.provenance["exemplars"][0]["name"] == "exemplar 1"


def test_cancelling_goes_through_the_progress_function(a_tiny_base: str, a_case: tuple[Path, Path]) -> None:
    exemplar = load_exemplar(*a_case, axis="k", slices=(1, 3))
    with pytest.raises(Cancelled):
        adapt([exemplar], base="tiny", recipe=QUICK, device="cpu", progress=Listener(1, Cancelled()))


def test_what_a_method_cannot_use_is_refused(a_tiny_base: str, a_case: tuple[Path, Path], tmp_path: Path) -> None:
    exemplar = load_exemplar(*a_case, axis="k", slices=(1, 3))
    with pytest.raises(InputError, match="At least one exemplar"):
        adapt([], base="tiny", device="cpu")
    with pytest.raises(InputError, match="does not use exemplars"):
        adapt([exemplar], method="uda", source=tmp_path, target=tmp_path, device="cpu")
    with pytest.raises(InputError, match="load_exemplar"):
        adapt([a_case], base="tiny", device="cpu")  # type: ignore[list-item]
    with pytest.raises(InputError, match='did you mean "steps"'):
        adapt([exemplar], base="tiny", recipe={"stepz": 3}, device="cpu")


def test_segment_gives_the_labelmap_of_the_same_job(an_adapter_file: Path, a_case: tuple[Path, Path]) -> None:
    out = a_case[0].parent / "out"
    run(SegmentJob((str(a_case[0]),), str(out), str(an_adapter_file), largest_component=True, device="cpu"))
    wanted = load_labelmap(out / "ct.seg.nrrd")
    found = segment(a_case[0], Adapter.load(an_adapter_file), largest_component=True, device="cpu")
    assert np.array_equal(found.volume.array, wanted.volume.array)
    assert found.structures == wanted.structures
    volume = load_volume(a_case[0])
    again = segment(volume.array, an_adapter_file, spacing_mm=volume.spacing_mm, largest_component=True, device="cpu")
    assert np.array_equal(again.volume.array, wanted.volume.array)


def test_a_support_set_and_prompts_segment_without_an_adapter(a_tiny_base: str, a_case: tuple[Path, Path]) -> None:
    exemplar = load_exemplar(*a_case, axis="k", slices=(1, 3))
    found = segment(a_case[0], support=[exemplar], base="tiny", device="cpu")
    assert found.structures == {1: "disc", 2: "square"}
    assert found.volume.array.any()
    box = Prompt(0, 2, box_ijk=np.array([[10.0, 10, 2], [40, 40, 2]]), structure="liver")
    assert segment(a_case[0], prompts=[box], base="tiny", device="cpu").structures == {1: "liver"}
    with pytest.raises(InputError, match="nothing to segment"):
        segment(a_case[0], base="tiny", device="cpu")


def test_a_folder_is_segmented_and_what_is_there_is_left(
    an_adapter_file: Path, tmp_path: Path, a_listener: Listener
) -> None:
    for number in range(2):
        image, labelmap = write_discs(tmp_path / "patients", f"p{number}", number)
        labelmap.unlink()
    adapter = Adapter.load(an_adapter_file)
    records = segment_folder(tmp_path / "patients", tmp_path / "out", adapter, device="cpu", progress=a_listener)
    assert [Path(record["image"]).name for record in records] == ["p0.nrrd", "p1.nrrd"]
    assert (tmp_path / "out" / "volumes.csv").is_file()
    labels = load_labelmap(tmp_path / "out" / "p1.seg.nrrd")
    assert np.array_equal(labels.volume.array, segment(image, adapter, device="cpu").volume.array)
    again = segment_folder([image], tmp_path / "out", an_adapter_file, device="cpu")
    assert [record["skipped"] for record in again] == [True]


def test_of_a_folder_with_a_file_for_each_channel_one_channel_is_segmented(
    an_adapter_file: Path, tmp_path: Path
) -> None:
    for case in ("p1", "p2"):
        for number in (0, 1):
            write_discs(tmp_path / "images", f"{case}_{number:04d}", number)[1].unlink()
    with pytest.raises(InputError, match="holds the channels 0, 1 of each image"):
        segment_folder(tmp_path / "images", tmp_path / "out", an_adapter_file, device="cpu")
    records = segment_folder(tmp_path / "images", tmp_path / "out", an_adapter_file, channel=1, device="cpu")
    assert [Path(record["image"]).name for record in records] == ["p1_0001.nrrd", "p2_0001.nrrd"]
    assert not any("error" in record for record in records)


def test_an_image_that_fails_does_not_stop_the_others(an_adapter_file: Path, tmp_path: Path) -> None:
    image, _ = write_discs(tmp_path, "good", 0)
    bad = tmp_path / "bad.nrrd"
    bad.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"bad\.nrrd failed"):
        records = segment_folder([bad, image], tmp_path / "out", an_adapter_file, device="cpu")
    assert ["error" in record for record in records] == [True, False]
    with (
        pytest.warns(UserWarning, match="failed"),
        pytest.raises(InputError, match=r"No image could be segmented.*bad\.nrrd"),
    ):
        segment_folder([bad], tmp_path / "out", an_adapter_file, device="cpu")


def test_an_exemplar_with_doubtful_labels_is_warned_about(
    a_tiny_base: str, a_labelled_volume: tuple[Volume, np.ndarray]
) -> None:
    volume, labels = a_labelled_volume
    exemplar = make_exemplar(volume, labels, axis=0, slices=(1,), structures={1: "disc"})
    narrow = exemplar.labelmap.copy()
    narrow[1] = 0
    narrow[1, 30, 30] = 1
    with pytest.warns(UserWarning, match="single voxel"):
        segment(volume, support=[replace(exemplar, labelmap=narrow)], base="tiny", device="cpu")
