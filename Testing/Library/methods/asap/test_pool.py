"""The pool of auxiliary data: on one grid, from any layout, whatever is wrong with a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from FewShotSegLib.data.digests import sha256_of_array
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.job import AuxiliaryFiles, ExemplarFiles
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.io.datasets import CaseFiles, DataSet, data_set_of, data_sets_in
from FewShotSegLib.io.volumes import load_volume, save_labelmap, save_volume
from FewShotSegLib.methods.asap import pool
from FewShotSegLib.methods.asap.pool import Pool, UnusableArm
from FewShotSegLib.progress import Progress, silent
from FewShotSegLib.training.patches import Change
from Testing.conftest import BALL, BOX, axial, placed

GRID = Grid((2.0, 2.0, 4.0), (6, 20, 16))


def write_case(folder: Path, name: str, seed: int = 0, structures: dict[int, str] | None = None, **grid: Any) -> None:
    """Write images/NAME.nii.gz and labels/NAME, with names if there are any."""
    volume, labels = placed(*axial(**grid), seed=seed)
    save_volume(volume, folder / "images" / f"{name}.nii.gz")
    suffix = ".seg.nrrd" if structures else ".nii.gz"
    save_labelmap(Labelmap(volume.like(labels), structures or {}), folder / "labels" / f"{name}{suffix}")


@pytest.fixture
def a_folder(tmp_path: Path) -> Path:
    """Two data sets: "shapes" with two cases, named by a card, and "plain" with one that says nothing."""
    for number in range(2):
        write_case(tmp_path / "data" / "shapes", f"case_{number}", seed=number)
    card = {"modality": "MR", "licence": "CC0", "structures": {"1": "ball", "2": "box"}}
    (tmp_path / "data" / "shapes" / "card.json").write_text(json.dumps(card), encoding="utf-8")
    write_case(tmp_path / "data" / "plain", "only", seed=7, spacing=(1.5, 2.5, 3.0), size=(40, 36, 16))
    return tmp_path / "data"


def pool_of(folder: Path, **options: Any) -> Pool:
    return Pool(data_sets_in(folder), options.pop("grid", GRID), folder.parent / "cache", **options)


def sampled(pool: Pool, arm: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return pool.sample(arm, np.random.default_rng(seed))


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Count the cases that are read from now on."""
    read: list[Path] = []
    load = pool.complete_exemplar

    def counted(case: CaseFiles, *arguments: Any, **options: Any) -> Any:
        read.append(case.image)
        return load(case, *arguments, **options)

    monkeypatch.setattr(pool, "complete_exemplar", counted)
    return read


# --- arms -----------------------------------------------------------------------------------------------------------


def test_each_structure_of_each_data_set_is_an_arm(a_folder: Path) -> None:
    assert pool_of(a_folder).names == ("plain: 1", "plain: 2", "shapes: ball", "shapes: box")


def test_arms_are_described_with_licence_size_and_modality(a_folder: Path) -> None:
    row = pool_of(a_folder).describe()[2]
    size = sum(path.stat().st_size for path in (a_folder / "shapes").rglob("case_*"))
    assert row.pop("megabytes") == pytest.approx(size / 1e6, abs=1e-3)
    assert row == {
        "arm": 2,
        "name": "shapes: ball",
        "structure": "ball",
        "data_set": "shapes",
        "modality": "MR",
        "licence": "CC0",
        "cases": 2,
        "quarantined": "",
    }
    json.dumps(row)


def test_arms_can_be_left_out_by_name(a_folder: Path) -> None:
    whole, part = pool_of(a_folder), pool_of(a_folder, exclude=["shapes: ball", "plain: 1"])
    assert part.names == ("plain: 2", "shapes: box")
    for one, other in zip(sampled(whole, 3), sampled(part, 1), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match='No auxiliary data is called "shapes: bal"'):
        pool_of(a_folder, exclude=["shapes: bal"])


def test_at_most_so_many_cases_are_used_chosen_by_the_seed(tmp_path: Path) -> None:
    cases = tuple(CaseFiles(tmp_path / f"{n}.nrrd", tmp_path / f"{n}.seg.nrrd", {1: "liver"}) for n in range(100))
    many, other = DataSet("many", cases, {"liver": ("liver",)}), DataSet("other", cases[:5], {"liver": ("liver",)})

    def chosen(*data_sets: DataSet, seed: int = 0) -> tuple[CaseFiles, ...]:
        pool = Pool(data_sets, GRID, tmp_path, seed=seed)
        return next(arm.data_set.cases for arm in pool.arms if arm.data_set.name == "many")

    assert len(set(chosen(many))) == 30
    assert chosen(many) == chosen(other, many) != chosen(many, seed=1)
    with pytest.raises(InputError, match='Two auxiliary data sets are called "many"'):
        chosen(many, many)
    with pytest.raises(InputError, match="at least 1 case"):
        Pool([many], GRID, tmp_path, max_cases=0)


def test_no_image_is_read_before_it_is_drawn(a_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = forbid_reading(monkeypatch)
    pool = pool_of(a_folder)
    assert read == []
    sampled(pool, 2)
    assert len(read) == 1


# --- samples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", range(4))
def test_a_sample_is_a_patch_with_the_mask_of_its_structure(a_folder: Path, arm: int) -> None:
    pool = pool_of(a_folder, foreground=1.0)
    ball = arm % 2 == 0
    for seed in range(8):
        image, mask = sampled(pool, arm, seed)
        assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((6, 20, 16), np.float32, (6, 20, 16), np.bool_)
        assert 0 <= image.min() <= image.max() <= 1
        assert mask.any()
        inside = image[mask].mean()  # 700 or 400 of 80..720, blurred at the rim where the spacing differs
        assert inside == pytest.approx(0.97 if ball else 0.5, abs=0.14)


def test_patches_are_drawn_around_the_structure_or_anywhere(a_folder: Path) -> None:
    grid = Grid(GRID.spacing_mm, (3, 8, 8))

    def hits(share: float) -> int:
        pool = pool_of(a_folder, grid=grid, foreground=share)
        return sum(bool(sampled(pool, 3, seed)[1].any()) for seed in range(60))

    assert hits(1.0) == 60
    assert hits(0.0) < 30
    assert hits(0.0) < hits(0.5) < 60


def test_every_place_of_a_case_can_be_drawn(a_folder: Path) -> None:
    pool = pool_of(a_folder, grid=Grid(GRID.spacing_mm, (12, 40, 29)), foreground=0.0, max_cases=1)
    images = {sampled(pool, 2, seed)[0].tobytes() for seed in range(30)}
    assert len(images) == 2  # of 30 columns, 29 fit in two ways


def test_a_case_smaller_than_the_patch_lies_in_its_middle(a_folder: Path) -> None:
    pool = pool_of(a_folder, grid=Grid(GRID.spacing_mm, (16, 40, 16)), foreground=1.0)
    image, mask = sampled(pool, 2)
    assert (image[[0, 1, -2, -1]] == 0).all()
    assert not mask[[0, 1, -2, -1]].any()
    assert image[2:-2].min(axis=(1, 2)).max() > 0 or image[2:-2].max() > 0.9


def test_what_is_drawn_depends_on_the_generator_alone(a_folder: Path) -> None:
    first, second = pool_of(a_folder), pool_of(a_folder)
    for seed in range(5):
        sampled(second, 3, seed + 50)
    for arm in (3, 0, 2):
        for one, other in zip(sampled(first, arm), sampled(second, arm), strict=True):
            np.testing.assert_array_equal(one, other)
    rng = np.random.default_rng(0)
    image, _ = first.sample(2, rng)
    assert not np.array_equal(image, first.sample(2, rng)[0])


def test_patches_are_turned_before_they_are_cut(a_folder: Path) -> None:
    """A turned square shows what lies around it; only beyond the case there is black."""
    small = Grid((2.0, 2.0, 4.0), (4, 8, 8))
    pool = pool_of(a_folder, grid=small, foreground=1.0)
    black = []
    for seed in range(12):
        image = pool.draw(0, np.random.default_rng(seed), Change(angles_deg=(45.0, 0.0, 0.0))).image.numpy()
        black.append(float((image == 0).mean()))
    corners = 1 - (2**0.5 - 1) * 2  # of a square that was cut first, and then turned by 45 degrees
    assert np.median(black) < corners / 4


def test_the_mask_of_a_changed_patch_is_the_structure_moved_along(a_folder: Path) -> None:
    pool = pool_of(a_folder, foreground=1.0)
    plain = pool.draw(1, np.random.default_rng(3))
    mirrored = pool.draw(1, np.random.default_rng(3), Change(mirrored=(False, False, True)))
    assert plain.mask.any()
    np.testing.assert_array_equal(mirrored.mask.flip(2), plain.mask)
    np.testing.assert_allclose(mirrored.image.flip(2), plain.image, atol=1e-4)
    assert not np.array_equal(mirrored.mask, plain.mask)


def test_the_exemplars_own_scans_are_never_drawn(a_folder: Path) -> None:
    own = load_volume(a_folder / "shapes" / "images" / "case_0.nii.gz")
    digests = {sha256_of_array(own.array)}
    for warm in range(2):  # also from the cache
        pool = pool_of(a_folder, of_target=digests)
        arm = pool.names.index("shapes: box")
        names = [pool._case_showing(arm, np.random.default_rng(seed))[0].image.name for seed in range(8)]
        assert set(names) == {"case_1.nii.gz"}, warm
    other = load_volume(a_folder / "shapes" / "images" / "case_1.nii.gz")
    pool = pool_of(a_folder, of_target=digests | {sha256_of_array(other.array)})
    with pytest.raises(UnusableArm, match="none of its 2 cases but those of the exemplars shows it"):
        pool.sample(arm, np.random.default_rng(0))


def test_a_sample_is_the_callers_own(a_folder: Path) -> None:
    pool = pool_of(a_folder)
    image, mask = sampled(pool, 0)
    expected = image.copy(), mask.copy()
    image[:], mask[:] = -1, True
    for one, other in zip(sampled(pool, 0), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_structure_is_known_by_its_name_whatever_its_label(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "d"
    write_case(folder, "a", structures={1: "ball", 2: "box"})
    volume, labels = placed(*axial())
    save_volume(volume, folder / "images" / "b.nii.gz")
    other = Labelmap(volume.like(np.array([0, 5, 9], np.uint8)[labels]), {5: "ball", 9: "box"})
    save_labelmap(other, folder / "labels" / "b.seg.nrrd")
    pool = pool_of(folder.parent, foreground=1.0)
    assert pool.names == ("d: ball", "d: box")
    for seed in range(12):
        image, mask = sampled(pool, 0, seed)
        assert image[mask].mean() > 0.9


def test_a_region_is_all_of_its_labels(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "R"
    for part, array in zip(("imagesTr/a_0000", "labelsTr/a"), placed(*axial()), strict=True):
        volume = array if isinstance(array, Volume) else Volume(array, axial()[1])
        save_volume(volume, folder / f"{part}.nii.gz")
    card = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "both": [1, 2], "box": 2}}
    (folder / "dataset.json").write_text(json.dumps(card), encoding="utf-8")
    pool = pool_of(folder.parent, grid=Grid(GRID.spacing_mm, (12, 40, 30)))
    (_, both), (_, box) = sampled(pool, 0), sampled(pool, 1)
    assert pool.names == ("R: both", "R: box")
    np.testing.assert_array_equal(both, placed(*axial())[1] > 0)
    np.testing.assert_array_equal(box, placed(*axial())[1] == BOX)


def test_the_channels_of_a_decathlon_image_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "T"
    volume, labels = placed(*axial())
    save_volume(volume.like(labels), folder / "labelsTr" / "a.nii.gz")
    image = sitk.JoinSeries([sitk.GetImageFromArray(volume.array), sitk.GetImageFromArray(800 - volume.array)])
    image.SetSpacing((2.0, 2.0, 4.0, 1.0))
    (folder / "imagesTr").mkdir()
    sitk.WriteImage(image, str(folder / "imagesTr" / "a.nii.gz"))
    card = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "ball"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    }
    (folder / "dataset.json").write_text(json.dumps(card), encoding="utf-8")
    pool = pool_of(folder.parent, foreground=1.0)
    assert pool.names == ("T T2: ball", "T ADC: ball")
    for arm, is_bright in enumerate((True, False)):
        image, mask = sampled(pool, arm)
        assert (image[mask].mean() > 0.5) == is_bright


def test_the_files_of_a_job_are_arms_with_the_names_it_gives(a_folder: Path) -> None:
    paths = [str(a_folder / "shapes" / kind / "case_0.nii.gz") for kind in ("images", "labels")]
    data_set = data_set_of(AuxiliaryFiles("mine", (ExemplarFiles(*paths, structures={2: "cuboid"}),)))
    pool = Pool([data_set], Grid(GRID.spacing_mm, (12, 40, 30)), a_folder.parent / "cache")
    assert pool.names == ("mine: cuboid",)
    np.testing.assert_array_equal(sampled(pool, 0)[1], placed(*axial())[1] == BOX)


def test_ct_gets_a_window_and_other_images_percentiles_and_the_target_decides_for_its_kind(tmp_path: Path) -> None:
    volume, labels = placed(*axial())
    labels[labels == BOX] = 0
    ct = volume.array - 600
    ct[:, :6][labels[:, :6] == 0] = 40  # as much soft tissue as a body has
    for name, image in (("ct", ct), ("mr", volume.array)):
        save_volume(volume.like(image), tmp_path / "data" / name / "a.nrrd")
        save_labelmap(Labelmap(volume.like(labels), {BALL: "ball"}), tmp_path / "data" / name / "a.seg.nrrd")
    whole = Grid(GRID.spacing_mm, (12, 40, 30))

    def ball(arm: int, intensity: IntensitySpec | None) -> float:
        image, mask = sampled(pool_of(tmp_path / "data", grid=whole, intensity=intensity), arm)
        return float(image[mask].mean())

    auto = (ball(0, None), ball(1, None))
    assert auto[0] == pytest.approx((100 + 125) / 400, abs=0.01)  # of the soft tissue window
    assert auto[1] == pytest.approx(0.97, abs=0.02)
    window = IntensitySpec("window", -300, 700)
    assert (ball(0, window), ball(1, window)) == (pytest.approx(0.4, abs=0.01), auto[1])
    percentiles = IntensitySpec("percentile", 0.0, 50.0)
    assert (ball(0, percentiles), ball(1, percentiles)) == (auto[0], pytest.approx(1.0))


# --- kept on disk ---------------------------------------------------------------------------------------------------


def test_a_case_is_brought_to_the_grid_once_for_all_runs(a_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sampled(pool_of(a_folder), 2)
    read = forbid_reading(monkeypatch)
    for one, other in zip(sampled(pool_of(a_folder), 2), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    sampled(pool_of(a_folder, grid=Grid(GRID.spacing_mm, (2, 4, 4))), 2)  # a smaller patch of the same
    assert read == []


@pytest.mark.parametrize("change", ["spacing", "orientation", "intensity", "content"])
def test_what_the_grid_does_to_a_case_is_done_anew_when_anything_changes(
    a_folder: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    sampled(pool_of(a_folder), 0)
    options: dict[str, Any] = {
        "spacing": {"grid": Grid((3.0, 2.0, 4.0), GRID.patch)},
        "orientation": {"grid": Grid(GRID.spacing_mm, GRID.patch, "RAS")},
        "intensity": {"intensity": IntensitySpec("percentile", 1.0, 99.0)},
        "content": {},
    }[change]
    if change == "content":
        write_case(a_folder / "plain", "only", seed=8)
    read = forbid_reading(monkeypatch)
    sampled(pool_of(a_folder, **options), 0)
    assert len(read) == 1


@pytest.mark.parametrize("damage", ["image", "labels", "json"])
def test_a_damaged_cache_is_made_anew(a_folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    expected = sampled(pool_of(a_folder), 0)
    kept = (a_folder.parent / "cache").iterdir()
    (path,) = (path for path in kept if damage in path.name and path.suffix in (".npy", ".json"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read = forbid_reading(monkeypatch)
    for one, other in zip(sampled(pool_of(a_folder), 0), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(read) == 1


def test_a_cache_that_cannot_be_written_is_not_the_fault_of_the_data(a_folder: Path) -> None:
    (a_folder.parent / "cache").write_text("in the way", encoding="utf-8")
    pool = pool_of(a_folder)
    with pytest.raises(InputError, match="Cannot write") as caught:
        sampled(pool, 0)
    assert not isinstance(caught.value, UnusableArm)
    assert pool.quarantined == {}


# --- what goes wrong ------------------------------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def differ(path: Path) -> None:
    save_volume(placed(*axial((9.0, 9.0, 9.0)))[0], path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(cut_short, "damaged"), (Path.unlink, "Cannot read"), (differ, "do not cover the same voxels")],
)
def test_a_bad_file_quarantines_its_arms_and_is_told_once(
    a_folder: Path, spoil: Callable[[Path], None], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of(a_folder)
    spoil(a_folder / "plain" / "images" / "only.nii.gz")
    with caplog.at_level(logging.WARNING):
        for arm in (0, 1, 0):
            with pytest.raises(UnusableArm, match=words):
                sampled(pool, arm)
    assert len(caplog.records) == 1
    assert "plain: 1, plain: 2 left out" in caplog.text
    assert set(pool.quarantined) == {0, 1}
    assert words in pool.describe()[1]["quarantined"]
    assert sampled(pool, 2)[0].shape == GRID.patch


def test_a_labelmap_that_cannot_be_read_is_found_when_it_is_drawn(a_folder: Path) -> None:
    write_case(a_folder / "plain", "second")
    cut_short(a_folder / "plain" / "labels" / "only.nii.gz")
    pool = pool_of(a_folder)
    assert pool.names[:2] == ("plain: 1", "plain: 2")  # from the other case
    with pytest.raises(UnusableArm, match="damaged"):
        pool.sample(0, np.random.default_rng(0))  # the first of its two cases that this generator draws


def test_a_structure_that_no_case_shows_is_left_out_alone(a_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    card = {"structures": {"1": "ball", "2": "box", "3": "cone"}}
    (a_folder / "shapes" / "card.json").write_text(json.dumps(card), encoding="utf-8")
    pool = pool_of(a_folder)
    with caplog.at_level(logging.WARNING), pytest.raises(UnusableArm, match="shapes: cone: none of its 2 cases"):
        sampled(pool, 4)
    assert set(pool.quarantined) == {4}
    assert sampled(pool, 2)[1].shape == GRID.patch


def test_only_cases_that_show_the_structure_are_drawn(a_folder: Path) -> None:
    volume, labels = placed(*axial())
    path = a_folder / "shapes" / "labels" / "case_1.nii.gz"
    save_labelmap(Labelmap(volume.like(np.where(labels == BALL, labels, 0).astype(np.uint8)), {}), path)
    pool = pool_of(a_folder, foreground=1.0)
    assert all(sampled(pool, 3, seed)[1].any() for seed in range(12))


# --- preparing ------------------------------------------------------------------------------------------------------


def test_all_cases_can_be_prepared_at_once(a_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_short(a_folder / "plain" / "images" / "only.nii.gz")
    heard: list[Progress] = []
    pool = pool_of(a_folder)
    pool.prepare(heard.append)
    assert [(p.step, p.total) for p in heard] == [(0, 3), (1, 3), (2, 3)]
    assert set(pool.quarantined) == {0, 1}
    read = forbid_reading(monkeypatch)
    for arm in (2, 3):
        sampled(pool, arm)
    pool_of(a_folder).prepare(silent)
    assert [path.name for path in read] == ["only.nii.gz"]


def test_preparing_can_be_cancelled(a_folder: Path) -> None:
    def cancel(progress: Progress) -> None:
        if progress.step == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        pool_of(a_folder).prepare(cancel)
