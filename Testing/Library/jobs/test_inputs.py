"""What a job names is loaded, or refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.job import AdaptJob, AuxiliaryFiles, ExemplarFiles, SegmentJob
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.volumes import load_volume
from FewShotSegLib.jobs.inputs import exemplar_of, inputs_of, output_names
from FewShotSegLib.jobs.run import run
from FewShotSegLib.methods import Method
from Testing.conftest import write_discs


def a_method(*needs: str) -> Method:
    return cast(Method, SimpleNamespace(NEEDS=frozenset(needs)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "magic"}, "Unknown method 'magic'"),
        ({"base": "vit_z"}, "No base model or file is called vit_z"),
        ({"recipe": {"stpes": 3}}, 'Unknown recipe option "stpes"; did you mean "steps"'),
        ({"recipe": {"rank": 0}}, '"rank" must be between'),
        ({"exemplars": ()}, "At least one exemplar"),
        ({"exemplars": (ExemplarFiles("no.nrrd", "no.seg.nrrd"),)}, r"no\.nrrd"),
    ],
)
def test_bad_input_is_refused_before_any_work(changes: dict[str, Any], sentence: str, an_adapt_job: AdaptJob) -> None:
    with pytest.raises(InputError, match=sentence):
        run(replace(an_adapt_job, **changes))
    assert list(Path(an_adapt_job.out).parent.glob("*")) == []


def test_two_images_that_would_be_written_as_one_are_refused(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p1\.nii\.gz have the same name"):
        run(replace(a_segment_job, images=(a_segment_job.images[0], str(tmp_path / "other" / "p1.nii.gz"))))


def test_outputs_are_called_after_their_images() -> None:
    names = ["a/p 1.nii.gz", "b/p 2.seg.nrrd", "c/p.3.nrrd", "d/series"]
    assert output_names(names) == ["p 1", "p 2", "p.3", "series"]


def test_the_same_image_twice_is_two_outputs_of_one_name() -> None:
    with pytest.raises(InputError, match=r"a/p\.nrrd and b/p\.mha have the same name.*rename one"):
        output_names(["a/p.nrrd", "b/p.mha"])


def test_an_exemplar_is_loaded_along_the_axis_and_with_the_structures_that_it_names(tmp_path: Path) -> None:
    image, labelmap = write_discs(tmp_path, "case", 0)
    files = ExemplarFiles(str(image), str(labelmap), axis="j", slices=(20, 23), structures={1: "disc"})
    exemplar = exemplar_of(files)
    assert (exemplar.axis, exemplar.structures) == (1, {1: "disc"})
    assert set(exemplar.annotated_slices) | set(exemplar.empty_slices) == {20, 23}
    assert np.array_equal(exemplar.volume.array, load_volume(image).array)
    assert exemplar_of(replace(files, axis=None, slices=None)).axis == 0  # that of acquisition


def test_targets_come_by_name_from_the_list_and_from_the_folder(tmp_path: Path) -> None:
    listed, _ = write_discs(tmp_path / "listed", "a", 0)
    write_discs(tmp_path / "folder", "b", 1)
    write_discs(tmp_path / "folder", "c", 2)
    job = AdaptJob("o.safetensors", targets=(str(listed),), target_folder=str(tmp_path / "folder"))
    targets = inputs_of(job, a_method("targets")).targets
    assert list(targets) == ["a", "b", "c"]
    assert np.array_equal(targets["c"].array, load_volume(tmp_path / "folder" / "c.nrrd").array)


def test_auxiliary_data_come_from_the_list_and_from_the_folder(tmp_path: Path) -> None:
    image, labelmap = write_discs(tmp_path / "listed", "a", 0)
    write_discs(tmp_path / "folder" / "north", "b", 1)
    files = AuxiliaryFiles("mine", (ExemplarFiles(str(image), str(labelmap)),))
    job = AdaptJob("o.safetensors", auxiliary=(files,), auxiliary_folder=str(tmp_path / "folder"))
    assert [data_set.name for data_set in inputs_of(job, a_method("auxiliary")).auxiliary] == ["mine", "north"]


def test_the_source_must_be_one_data_set(tmp_path: Path) -> None:
    for name in ("north", "south"):
        write_discs(tmp_path / "data" / name, "a", 0)
    job = AdaptJob("o.safetensors", source_folder=str(tmp_path / "data"))
    with pytest.raises(InputError, match=r"holds 2 data sets \(north, south\)"):
        inputs_of(job, a_method("source"))
    source = inputs_of(replace(job, source_folder=str(tmp_path / "data" / "south")), a_method("source")).source
    assert source is not None
    assert source.name == "south"


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"exemplars": (ExemplarFiles("a.nrrd", "b.nrrd"),)}, "exemplars"),
        ({"auxiliary_folder": "a"}, "auxiliary data"),
        ({"source_folder": "a"}, "a folder with annotated source images"),
        ({"targets": ("a.nrrd",)}, "unlabelled target images"),
        ({"target_folder": "a"}, "unlabelled target images"),
    ],
)
def test_what_a_method_has_no_use_for_is_refused_before_it_is_read(given: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=f"The method lora does not use {what}"):
        inputs_of(AdaptJob("o.safetensors", **given), a_method())


@pytest.mark.parametrize("missing", ["source", "targets"])
def test_what_a_method_cannot_do_without_is_asked_for(missing: str) -> None:
    with pytest.raises(InputError, match=r"The method lora needs .*; choose them"):
        inputs_of(AdaptJob("o.safetensors"), a_method(missing))


def test_the_intensity_is_the_chosen_one_else_that_of_the_adapter_to_go_on_from(an_adapter_file: Path) -> None:
    job = AdaptJob("o.safetensors", warm_start=str(an_adapter_file))
    started = inputs_of(job, a_method())
    assert started.start is not None
    assert started.intensity == started.start.intensity
    chosen = inputs_of(replace(job, intensity={"kind": "window", "low": -10, "high": 90}), a_method())
    assert chosen.intensity == IntensitySpec("window", -10, 90)
    assert inputs_of(AdaptJob("o.safetensors"), a_method()).intensity is None
