"""Segmenting from files to files: what is written, what is made again, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles, SegmentJob
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.inference.support import SupportRecipe, support_adapter
from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegLib.io.prompts import save_prompts
from FewShotSegLib.io.volumes import load_labelmap, load_volume, save_volume
from FewShotSegLib.jobs import segment
from FewShotSegLib.jobs.run import run
from FewShotSegLib.sam import registry
from FewShotSegLib.sam.loading import load_base
from Testing.conftest import QUICK, Listener, dice, discs, save_tiny_compact, write_discs
from Testing.Library.io.dicom_series import write_series
from Testing.Library.jobs.conftest import files_in


def test_segmenting_writes_named_structures_on_the_grid_of_the_image(a_segment_job: SegmentJob) -> None:
    run(a_segment_job)
    out = Path(a_segment_job.out)
    assert files_in(out) == {"p1.seg.nrrd", "p1.result.json", "p2.seg.nrrd", "p2.result.json"}
    labelmap = load_labelmap(out / "p1.seg.nrrd")
    assert labelmap.structures == {1: "disc", 2: "square"}
    assert labelmap.volume.same_geometry(load_volume(a_segment_job.images[0]))


def test_the_record_of_an_image_holds_volumes_that_agree_with_its_labelmap(a_segment_job: SegmentJob) -> None:
    run(a_segment_job)
    record = json.loads((Path(a_segment_job.out) / "p1.result.json").read_text(encoding="utf-8"))
    labels = load_labelmap(Path(a_segment_job.out) / "p1.seg.nrrd").volume
    for name, row in record["metrics"]["structures"].items():
        voxels = int((labels.array == {"disc": 1, "square": 2}[name]).sum())
        assert row["voxels"] == voxels
        assert row["volume_ml"] == pytest.approx(voxels * 1 * 1 * 4 / 1000)


def test_probability_maps_agree_with_the_labels(a_segment_job: SegmentJob) -> None:
    run(replace(a_segment_job, probabilities=True))
    out = Path(a_segment_job.out)
    labels = load_labelmap(out / "p1.seg.nrrd").volume.array
    disc = load_volume(out / "p1.disc.probability.nrrd").array
    square = load_volume(out / "p1.square.probability.nrrd").array
    assert 0 <= disc.min() <= disc.max() <= 1
    assert (disc[labels == 1] >= 0.5).all()
    assert (disc[labels == 1] >= square[labels == 1]).all()


def test_an_image_that_is_done_is_not_done_again(a_segment_job: SegmentJob, a_listener: Listener) -> None:
    run(a_segment_job)
    made = {path.name: path.stat().st_mtime_ns for path in Path(a_segment_job.out).iterdir()}
    result = run(a_segment_job, a_listener)
    assert made == {path.name: path.stat().st_mtime_ns for path in Path(a_segment_job.out).iterdir()}
    assert all(record["skipped"] for record in result["images"])
    assert sum("there already" in message for message in a_listener.messages) == 2


@pytest.mark.parametrize("change", ["image", "option", "adapter", "missing output", "prompts"])
def test_an_image_is_done_again_when_anything_that_matters_has_changed(
    change: str, a_segment_job: SegmentJob, tmp_path: Path
) -> None:
    job = replace(a_segment_job, images=a_segment_job.images[:1])
    run(job)
    if change == "image":
        volume = load_volume(job.images[0])
        save_volume(volume.like(volume.array + np.int16(1)), job.images[0])
    elif change == "option":
        job = replace(job, largest_component=True)
    elif change == "adapter":
        adapter = load_adapter(job.adapter or "")
        save_adapter(replace(adapter, seed=adapter.seed + 1), job.adapter or "")
    elif change == "prompts":
        save_prompts([a_click_on_the_disc()], tmp_path / "clicks.json")
        job = replace(job, prompts=str(tmp_path / "clicks.json"))
    else:
        (Path(job.out) / "p1.seg.nrrd").unlink()
    assert not run(job)["images"][0].get("skipped")
    assert load_labelmap(Path(job.out) / "p1.seg.nrrd").volume.shape == (6, 64, 64)


def test_a_segmentation_that_was_corrected_by_hand_stays_and_is_told(
    a_segment_job: SegmentJob, tmp_path: Path, a_listener: Listener
) -> None:
    run(a_segment_job)
    corrected = Path(a_segment_job.out) / "p1.seg.nrrd"
    corrected.write_bytes((tmp_path / "p1.seg.nrrd").read_bytes())
    first, second = run(a_segment_job, a_listener)["images"]
    assert first["skipped"]
    assert first["changed"] == ["p1.seg.nrrd"]
    assert any("p1.seg.nrrd" in sentence and "changed since" in sentence for sentence in a_listener.messages)
    assert second["skipped"]
    other = replace(a_segment_job, largest_component=True)  # another job would make another file
    with pytest.raises(InputError, match=r"1 of 2 images.*p1\.seg\.nrrd is there already.*--overwrite"):
        run(other)
    assert corrected.read_bytes() == (tmp_path / "p1.seg.nrrd").read_bytes()
    run(replace(other, overwrite=True))
    assert corrected.read_bytes() != (tmp_path / "p1.seg.nrrd").read_bytes()


def test_an_annotation_beside_the_image_stays_also_where_it_supports(a_supported_job: SegmentJob) -> None:
    annotation = Path(a_supported_job.images[0]).with_name("p.seg.nrrd")
    before = annotation.read_bytes()
    beside = replace(a_supported_job, out=str(annotation.parent))
    with pytest.raises(InputError, match=r"p\.seg\.nrrd is there already"):
        run(beside)
    files = replace(a_supported_job.support[0], image=a_supported_job.images[0], labelmap=str(annotation))
    with pytest.raises(InputError, match=r"p\.seg\.nrrd is what this job reads"):
        run(replace(beside, support=(files,), overwrite=True))
    assert annotation.read_bytes() == before


def test_each_structure_has_a_probability_file_of_its_own(a_segment_job: SegmentJob) -> None:
    adapter = load_adapter(a_segment_job.adapter or "")
    awkward = {1: "lesion/Left", 2: "lesion:left"}
    save_adapter(replace(adapter, structures=awkward), a_segment_job.adapter or "")
    job = replace(a_segment_job, images=a_segment_job.images[:1], probabilities=True)
    run(job)
    assert len(list(Path(job.out).glob("*.probability.nrrd"))) == 2
    save_adapter(replace(adapter, structures={1: "n" * 300, 2: "b"}), a_segment_job.adapter or "")
    run(job)
    assert load_labelmap(Path(job.out) / "p1.seg.nrrd").structures == {1: "n" * 300, 2: "b"}


def a_click_on_the_disc() -> Prompt:
    return Prompt(0, 2, np.array([[22.0, 22.0, 2.0]]), np.array([1]), structure="disc")


def test_a_base_model_segments_with_prompts_alone(a_tiny_base: str, tmp_path: Path) -> None:
    image, _ = write_discs(tmp_path, "p", 0)
    save_prompts([a_click_on_the_disc()], tmp_path / "clicks.json")
    job = SegmentJob((str(image),), str(tmp_path / "o"), prompts=str(tmp_path / "clicks.json"), base=a_tiny_base)
    run(job)
    assert load_labelmap(tmp_path / "o" / "p.seg.nrrd").structures == {1: "disc"}


@pytest.fixture
def a_supported_job(a_tiny_base: str, tmp_path: Path) -> SegmentJob:
    image, labelmap = write_discs(tmp_path, "supporting case", 0)
    files = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
    new, _ = write_discs(tmp_path, "p", 1)
    return SegmentJob(
        (str(new),),
        str(tmp_path / "o"),
        support=(files,),
        support_recipe={"pictures": 4},
        base=a_tiny_base,
        device="cpu",
    )


def test_a_support_set_segments_without_any_training(a_supported_job: SegmentJob, tmp_path: Path) -> None:
    truth = load_labelmap(tmp_path / "p.seg.nrrd")
    record = run(a_supported_job)
    found = load_labelmap(tmp_path / "o" / "p.seg.nrrd")
    assert found.structures == {1: "disc", 2: "square"}
    for value in (1, 2):
        assert dice(found.volume.array == value, truth.volume.array == value) > 0.6  # the network is untrained
    assert record["job"]["support_recipe"] == {"pictures": 4}
    assert not [path for path in tmp_path.rglob("*.safetensors") if path.parent.name == "o"]


def test_a_support_set_that_changes_is_looked_at_again(a_supported_job: SegmentJob) -> None:
    run(a_supported_job)
    assert run(a_supported_job)["images"][0].get("skipped")
    other = replace(a_supported_job.support[0], slices=(2,))
    assert not run(replace(a_supported_job, support=(other,)))["images"][0].get("skipped")


def test_a_support_set_and_the_images_are_seen_in_the_chosen_window(a_supported_job: SegmentJob) -> None:
    found = run(a_supported_job)["images"][0]["metrics"]["structures"]["disc"]["voxels"]
    nothing_shows = {"kind": "window", "low": 5000.0, "high": 6000.0}
    blind = run(replace(a_supported_job, intensity=nothing_shows))["images"][0]
    assert not blind.get("skipped")
    assert blind["metrics"]["structures"].get("disc", {"voxels": 0})["voxels"] != found


def test_clicks_override_what_a_support_set_says(a_supported_job: SegmentJob, tmp_path: Path) -> None:
    free = run(a_supported_job)["images"][0]["metrics"]["structures"]["disc"]["voxels"]
    save_prompts([Prompt(0, 2, np.array([[55.0, 5.0, 2.0]]), np.array([1]), structure="disc")], tmp_path / "c.json")
    clicked = run(replace(a_supported_job, prompts=str(tmp_path / "c.json")))
    assert clicked["images"][0]["metrics"]["structures"]["disc"]["voxels"] != free


def test_a_support_set_in_a_file_is_an_adapter_too(
    a_supported_job: SegmentJob, a_tiny_base: str, tmp_path: Path
) -> None:
    given = a_supported_job.support[0]
    exemplar = load_exemplar(given.image, given.labelmap, axis=0, slices=given.slices)
    support = support_adapter([exemplar], load_base(a_tiny_base), recipe=SupportRecipe(pictures=4))
    save_adapter(support, tmp_path / "support.safetensors")
    run(a_supported_job)
    found = load_labelmap(tmp_path / "o" / "p.seg.nrrd").volume.array
    run(SegmentJob(a_supported_job.images, str(tmp_path / "o2"), str(tmp_path / "support.safetensors"), device="cpu"))
    np.testing.assert_array_equal(load_labelmap(tmp_path / "o2" / "p.seg.nrrd").volume.array, found)


def test_looking_at_a_support_set_can_be_cancelled(a_supported_job: SegmentJob, tmp_path: Path) -> None:
    listener = Listener(2, Cancelled())
    with pytest.raises(Cancelled):
        run(a_supported_job, listener)
    assert "exemplar picture" in listener.messages[-1]
    assert not list((tmp_path / "o").glob("*.seg.nrrd"))


def test_a_support_set_goes_with_an_adapter_of_many_tasks_and_with_no_other(
    a_supported_job: SegmentJob, an_adapt_job: AdaptJob
) -> None:
    run(replace(an_adapt_job, method="lora"))
    with pytest.raises(InputError, match=r"has learned disc, square.*Leave one of the two out"):
        run(replace(a_supported_job, adapter=an_adapt_job.out))
    recipe = {key: value for key, value in QUICK.items() if key != "token_prompts"}
    run(replace(an_adapt_job, method="gmiseg", recipe=recipe))
    alone = run(a_supported_job)["images"][0]["digest"]
    assert run(replace(a_supported_job, adapter=an_adapt_job.out, base=None))["images"][0]["digest"] != alone
    with pytest.raises(InputError, match="has no named structures"):
        run(replace(a_supported_job, adapter=an_adapt_job.out, base=None, support=(), support_recipe={}))


def test_a_failing_image_does_not_stop_the_others_and_is_named_at_the_end(a_segment_job: SegmentJob) -> None:
    first, second = a_segment_job.images
    Path(first).write_bytes(b"no image")
    with pytest.raises(segment.SomeImagesFailed, match=r"1 of 2 images .*p1\.nrrd") as caught:
        run(a_segment_job)
    assert files_in(a_segment_job.out) == {"p1.result.json", "p2.seg.nrrd", "p2.result.json"}
    assert [("error" in record) for record in caught.value.result["images"]] == [True, False]
    assert caught.value.result["images"][1]["image"] == second


def test_a_volume_with_nan_is_refused_by_name(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    import SimpleITK as sitk

    array = np.zeros((4, 8, 8), np.float32)
    array[1, 2, 3] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / "holed.nrrd")
    with pytest.raises(InputError, match=r"holed\.nrrd.*NaN"):
        run(replace(a_segment_job, images=(str(tmp_path / "holed.nrrd"),)))


def test_cancelling_a_segmentation_keeps_what_is_whole(a_segment_job: SegmentJob) -> None:
    with pytest.raises(Cancelled):
        run(a_segment_job, Listener(1333, Cancelled()))  # the second of six slices of the second image
    assert files_in(a_segment_job.out) == {"p1.seg.nrrd", "p1.result.json"}


def test_an_image_is_never_overwritten_by_its_own_segmentation(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    image = tmp_path / "here" / "p.seg.nrrd"
    save_volume(load_volume(a_segment_job.images[0]), image)
    before = image.read_bytes()
    with pytest.raises(InputError, match="would be overwritten"):
        run(replace(a_segment_job, images=(str(image),), out=str(image.parent)))
    assert image.read_bytes() == before


def test_an_adapter_for_another_base_is_refused_naming_both(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    save_tiny_compact(tmp_path / "models" / "other.safetensors", seed=1)
    registry.add(tmp_path / "models" / "other.safetensors", "compact", "other")
    with pytest.raises(InputError, match=r"made for the base model tiny .*got other"):
        run(replace(a_segment_job, base="other"))


@pytest.mark.parametrize("damage", ["truncated", "tampered"])
def test_a_damaged_adapter_is_refused(damage: str, a_segment_job: SegmentJob) -> None:
    path = Path(a_segment_job.adapter or "")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[-5] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"organs\.safetensors"):
        run(a_segment_job)


def test_an_adapter_whose_base_is_unknown_here_says_which_it_needs(a_segment_job: SegmentJob, a_home: Path) -> None:
    (a_home / "models.json").unlink()
    with pytest.raises(InputError, match="made for the base model tiny"):
        run(a_segment_job)


def test_an_oblique_volume_keeps_its_place(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    volume = load_volume(a_segment_job.images[0])
    turn, c, s = np.eye(4), np.cos(0.3), np.sin(0.3)
    turn[:2, :2] = [[c, -s], [s, c]]
    affine = turn @ np.diag([0.7, -1.3, 3.0, 1.0])
    affine[:3, 3] = 12.5, -80.0, 7.0
    save_volume(Volume(volume.array, affine), tmp_path / "oblique.nrrd")
    run(replace(a_segment_job, images=(str(tmp_path / "oblique.nrrd"),)))
    found = load_labelmap(Path(a_segment_job.out) / "oblique.seg.nrrd")
    assert np.allclose(found.volume.affine, affine, atol=1e-6)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most_slices: int) -> list[int]:
    """A GPU that has no memory for more slices at a time than that; the numbers that were tried."""
    tried: list[int] = []
    real = segment.segment

    def limited(*given: Any, options: Any, **more: Any) -> Any:
        tried.append(options.batch_slices)
        if options.batch_slices > most_slices:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(*given, options=options, **more)

    monkeypatch.setattr(segment, "segment", limited)
    return tried


def test_out_of_gpu_memory_goes_on_with_one_slice_at_a_time_and_says_so(
    a_segment_job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(a_segment_job, images=a_segment_job.images[:1])
    run(replace(job, out=job.out + " undisturbed"))
    tried = short_of_memory(monkeypatch, most_slices=1)
    record = run(job)
    assert len(tried) == 2
    assert tried[1] == 1
    assert any("one slice at a time" in warning for warning in record["warnings"])
    one, other = (load_labelmap(Path(out) / "p1.seg.nrrd").volume.array for out in (job.out, job.out + " undisturbed"))
    assert np.array_equal(one, other)


def test_a_gpu_too_small_for_one_slice_is_told_with_what_to_do(
    a_segment_job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, most_slices=0)
    with pytest.raises(InputError, match=r"free memory for one slice: compute on the processor.*--device cpu"):
        run(replace(a_segment_job, images=a_segment_job.images[:1]))


def test_what_to_look_at_first_is_a_warning_of_the_record(
    a_segment_job: SegmentJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"label": 1, "volume_ml": 0.0, "voxels": 0, "confidence": None}
    flags = {"disc": ["is empty"], "square": ["has a low confidence", segment.CUT_OFF]}
    monkeypatch.setattr(
        segment, "quality", lambda *given: {name: {**row, "flags": found} for name, found in flags.items()}
    )
    record = run(replace(a_segment_job, images=a_segment_job.images[:1]))
    assert record["images"][0]["warnings"] == ["p1: disc is empty.", "p1: square has a low confidence."]
    assert record["images"][0]["metrics"]["structures"]["square"]["flags"] == flags["square"]
    assert record["images"][0]["least_sure_slice"] in range(6)


def test_a_dicom_series_gets_a_dicom_segmentation_that_evaluates_like_the_other(
    an_adapter_file: Path, tmp_path: Path
) -> None:
    from FewShotSegLib.evaluation.scoring import evaluate_folder

    series = write_series(tmp_path / "patient 1", discs(np.random.default_rng(1))[0])
    job = SegmentJob((str(series),), str(tmp_path / "nrrd"), str(an_adapter_file), device="cpu")
    run(job)
    as_dicom = replace(job, out=str(tmp_path / "dicom"), format="dicom-seg")
    run(as_dicom)
    assert [path.name for path in (tmp_path / "dicom").glob("*.dcm")] == ["patient 1.seg.dcm"]
    rows = evaluate_folder(tmp_path / "dicom", tmp_path / "nrrd")
    assert [(row.structure, row.dsc, row.hd95_mm) for row in rows if row.scope == "all_slices"] == [
        ("disc", 1.0, 0.0),
        ("square", 1.0, 0.0),
    ]
    assert run(as_dicom)["images"][0]["skipped"]
    other = replace(as_dicom, format="seg.nrrd")
    assert not run(other)["images"][0].get("skipped")


def test_a_dicom_series_gets_an_rt_structure_set_that_evaluates_like_the_other(
    an_adapter_file: Path, tmp_path: Path
) -> None:
    from FewShotSegLib.evaluation.scoring import evaluate_folder

    for number in (1, 2):
        write_series(tmp_path / f"patient {number}", discs(np.random.default_rng(number))[0])
    series = tuple(str(tmp_path / f"patient {number}") for number in (1, 2))
    job = SegmentJob(series, str(tmp_path / "nrrd"), str(an_adapter_file), device="cpu")
    run(job)
    as_outlines = replace(job, out=str(tmp_path / "dicom"), format="dicom-rtstruct")
    record = run(as_outlines)
    assert sorted(record["outputs"]) == ["patient 1.rtstruct.dcm", "patient 2.rtstruct.dcm"]
    # Planning systems number structures as they like: the second patient has them the other way round.
    turned = pydicom.dcmread(tmp_path / "dicom" / "patient 2.rtstruct.dcm")
    turned.StructureSetROISequence = turned.StructureSetROISequence[::-1]
    turned.save_as(tmp_path / "dicom" / "patient 2.rtstruct.dcm")
    for pair in ((tmp_path / "dicom", tmp_path / "nrrd"), (tmp_path / "nrrd", tmp_path / "dicom")):
        rows = [row for row in evaluate_folder(*pair) if row.scope == "all_slices"]
        assert [(row.case, row.structure, row.dsc, row.hd95_mm) for row in rows] == [
            (f"patient {number}", name, 1.0, 0.0) for number in (1, 2) for name in ("disc", "square")
        ]
    assert run(replace(as_outlines, images=series[:1]))["images"][0]["skipped"]


@pytest.mark.parametrize("form", ["dicom-seg", "dicom-rtstruct"])
def test_an_image_that_is_no_dicom_series_gets_no_dicom_object(a_segment_job: SegmentJob, form: Any) -> None:
    job = replace(a_segment_job, images=a_segment_job.images[:1], format=form)
    with pytest.raises(InputError, match="is no DICOM series"):
        run(job)


def test_another_channel_than_that_of_the_exemplars_is_a_warning(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    adapter = load_adapter(str(a_segment_job.adapter))
    exemplars = [{**one, "channel": 0} for one in adapter.provenance["exemplars"]]
    save_adapter(
        replace(adapter, provenance={**adapter.provenance, "exemplars": exemplars}), tmp_path / "c.safetensors"
    )
    image = load_volume(a_segment_job.images[0])
    for number in (0, 1):
        save_volume(image, tmp_path / f"p_{number:04d}.nrrd")
        job = replace(a_segment_job, images=(str(tmp_path / f"p_{number:04d}.nrrd"),), channel=number)
        warnings = " ".join(run(replace(job, adapter=str(tmp_path / "c.safetensors")))["warnings"])
        assert ("channel 1 is segmented with an adapter that was made from channel 0" in warnings) == (number == 1)
