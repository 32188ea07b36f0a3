"""Labels are borrowed from the nearest case in size, and only through a transform that is believable."""

from __future__ import annotations

import json

import numpy as np
import pytest

from FewShotSegLib.data.recipe import from_dict, to_dict
from FewShotSegLib.data.volume import Labelmap, Volume, ras_from_ijk
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.imaging.anatomy_space import AnatomySpace
from FewShotSegLib.io.images import image_from
from FewShotSegLib.methods.uda import registration
from FewShotSegLib.methods.uda.registration import (
    Registration,
    RegistrationRecipe,
    Size,
    body_mask,
    borrow_labels,
    ranked,
    register,
    size_of,
    transferred,
)
from Testing.conftest import Listener

# Centre and radii in RAS mm, and how bright: a body and three organs that tell left from right and up from down.
BODY = ((0, 0, 0), (80, 62, 85), 0.35)
ORGANS = (((-30, -5, 10), (32, 36, 40), 0.75), ((35, 15, 15), (16, 22, 24), 0.55), ((-28, 30, -35), (14, 12, 22), 0.95))


def scene(anatomy_from_ras=None, *, inverted=False, size=44, spacing_mm=(4.5, 4.5, 4.5)):
    """An image, and its labels 1 to 3, of one anatomy that lies elsewhere when a transform is given."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -(size - 1) / 2 * np.array(spacing_mm)
    k, j, i = np.mgrid[:size, :size, :size]
    points = ras_from_ijk(affine, np.stack([i, j, k], axis=-1).reshape(-1, 3))
    if anatomy_from_ras is not None:
        points = ras_from_ijk(anatomy_from_ras, points)
    image, labels = np.zeros(len(points)), np.zeros(len(points), np.uint8)
    for value, (centre, radii, bright) in enumerate((BODY, *ORGANS)):
        scaled = (points - centre) / radii
        distance = np.linalg.norm(scaled, axis=1)
        level = (1.15 - bright) if inverted else bright
        share = 1 / (1 + np.exp((distance - 1) * np.mean(radii) / 2.0))  # borders are 4 mm wide, as a scanner blurs
        image += share * (level - image)
        labels[(distance < 1) & (value > 0)] = value
    shape = (size, size, size)
    volume = Volume((1000 * image).reshape(shape).astype(np.float32), affine)
    return volume, volume.like(labels.reshape(shape))


def moved(angle=6.0, scale=(1.05, 0.96, 1.03), shift_mm=(9.0, -6.0, 5.0)):
    a, b = np.deg2rad([angle, angle / 2])
    about_s = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_r = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_s @ about_r @ np.diag(scale)
    matrix[:3, 3] = shift_mm
    return matrix


def error_mm(found, true, labels):
    """Mean distance over the organs."""
    points = ras_from_ijk(labels.affine, np.argwhere(labels.array > 0)[:, ::-1])
    return np.linalg.norm(ras_from_ijk(found, points) - ras_from_ijk(true, points), axis=1).mean()


def dice(a, b, value):
    return (
        2
        * np.count_nonzero((a == value) & (b == value))
        / (np.count_nonzero(a == value) + np.count_nonzero(b == value))
    )


# ------------------------------------------------------------------------------------------------------------- matching


def test_the_body_has_the_volume_of_its_shape():
    rng = np.random.default_rng(0)
    image, _ = scene()
    array = image.array + rng.normal(0, 20, image.shape)
    array[2, 2, 2] = 50_000  # metal in the air
    array[20:24, 20:24, 20:24] = 0  # gas
    analytic = 4 / 3 * np.pi * 80 * 62 * 85 / 1000
    size = size_of("a", image.like(array))
    assert size.ml[0] == pytest.approx(analytic, rel=0.05)
    assert size.extent_mm == pytest.approx((198, 198, 198))


def test_the_couch_is_no_body_and_a_constant_image_has_none():
    array = np.zeros((6, 30, 30))
    array[:, 5:20, 5:25] = 100
    array[:, 26:28, 2:28] = 80
    mask = body_mask(Volume(array, np.eye(4)))
    assert mask.sum() == 6 * 15 * 20
    assert not body_mask(Volume(np.full((3, 4, 5), 7), np.eye(4))).any()


def test_cases_are_matched_by_millilitres_and_not_by_voxels():
    array = np.zeros((10, 20, 20))
    array[2:8, 4:16, 4:16] = 100
    case = size_of("case", Volume(array, np.diag([1.0, 1, 1, 1])))
    same_voxels = size_of("same voxels", Volume(array, np.diag([2.0, 2, 2, 1])))
    fine = np.repeat(np.repeat(array, 2, axis=1), 2, axis=2)
    same_ml = size_of("same mL", Volume(fine, np.diag([0.5, 0.5, 1, 1])))
    matches = ranked(case, [same_voxels, same_ml])
    assert [match.name for match in matches] == ["same mL", "same voxels"]
    assert [match.difference_ml for match in matches] == [0.0, pytest.approx(7 * 0.864)]


def test_the_volume_is_that_of_oblique_and_mirrored_voxels_too():
    affine = moved(30.0, (-2.0, 1.5, 3.0))
    assert size_of("a", Volume(np.zeros((2, 3, 4)), affine), by="fov").ml == {0: pytest.approx(24 * 9 / 1000)}


def test_each_structure_is_compared_on_its_own():
    volume = Volume(np.zeros((1, 10, 100)), np.diag([10.0, 10, 10, 1]))  # 1 mL per voxel

    def with_labels(name, first, second):
        array = np.zeros(1000, np.uint8)
        array[:first], array[first : first + second] = 1, 2
        return size_of(name, volume, array.reshape(1, 10, 100), by="labels")

    case = with_labels("case", 100, 50)
    assert case.ml == pytest.approx({1: 100.0, 2: 50.0})
    matches = ranked(case, [with_labels("same sum", 50, 100), with_labels("near", 110, 60), with_labels("one", 100, 0)])
    assert [(match.name, match.difference_ml) for match in matches] == [("near", 20), ("one", 50), ("same sum", 100)]


def test_ties_go_to_the_nearest_extent_and_then_to_the_name():
    case = Size("case", {0: 10.0}, (100, 100, 100))
    pool = [
        Size("c", {0: 12.0}, (100, 100, 130)),
        Size("b", {0: 8.0}, (100, 100, 90)),
        Size("a", {0: 12.0}, (110, 100, 100)),
        Size("case", {0: 10.0}, (100, 100, 100)),
    ]
    assert [match.name for match in ranked(case, pool)] == ["a", "b", "c"]


def test_another_image_of_the_patient_comes_first_where_patients_are_known():
    case = Size("t2", {0: 10.0}, (1, 1, 1), "p1")
    pool = [Size("near", {0: 10.0}, (1, 1, 1), "p2"), Size("t1", {0: 90.0}, (1, 1, 1), "p1")]
    assert [match.name for match in ranked(case, pool)] == ["t1", "near"]
    assert [match.name for match in ranked(case, pool, same_patient_first=False)] == ["near", "t1"]
    nameless = [Size("far", {0: 90.0}, (1, 1, 1)), Size("near", {0: 10.0}, (1, 1, 1))]
    assert ranked(Size("case", {0: 10.0}, (1, 1, 1)), nameless)[0].name == "near"


def test_matching_by_what_is_not_there_is_refused():
    volume = Volume(np.zeros((2, 2, 2)), np.eye(4))
    with pytest.raises(InputError, match="a has no labels"):
        size_of("a", volume, by="labels")
    with pytest.raises(InputError, match="body, labels, fov"):
        size_of("a", volume, by="weight")


# --------------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize(
    ("metric", "inverted", "allowed_mm"),
    [("l2", False, 0.1), ("l2_gradient", False, 0.5), ("l2_gradient", True, 2.0), ("mi", True, 2.0)],
)
def test_a_known_affine_transform_is_found(metric, inverted, allowed_mm):
    true = moved()
    fixed, labels = scene(true)
    moving, moving_labels = scene(inverted=inverted)
    assert error_mm(np.eye(4), true, labels) > 12
    found = register(fixed, moving, RegistrationRecipe(metric=metric))
    assert found.accepted, found.rejected
    assert error_mm(found.moving_from_fixed, true, labels) < allowed_mm
    assert found.determinant == pytest.approx(np.linalg.det(true[:3, :3]), rel=0.03)
    assert found.after < found.before
    brought = transferred(moving_labels, found.moving_from_fixed, fixed).array
    assert min(dice(brought, labels.array, value) for value in (1, 2, 3)) > 0.85


def test_identical_images_stay_where_they_are():
    image, labels = scene()
    found = register(image, image)
    assert found.accepted
    assert error_mm(found.moving_from_fixed, np.eye(4), labels) < 0.05
    assert found.coverage == 1


def test_images_far_apart_are_first_laid_over_each_other():
    image, labels = scene()
    away = moved(0.0, (1, 1, 1), (1500.0, 0, -800.0))
    found = register(image, Volume(image.array, away @ image.affine))
    assert found.accepted, found.rejected
    assert error_mm(found.moving_from_fixed, away, labels) < 0.5


def test_the_same_images_give_the_same_transform_and_every_step_is_reported():
    fixed, moving = scene(moved())[0], scene(inverted=True)[0]
    recipe = RegistrationRecipe(iterations=6)
    first, again = Listener(), Listener()
    found = [register(fixed, moving, recipe, report=listener) for listener in (first, again)]
    assert np.array_equal(found[0].moving_from_fixed, found[1].moving_from_fixed)
    steps = [progress.step for progress in first.heard]
    assert steps == sorted(set(steps))
    assert steps[-1] <= first.heard[0].total == 18
    assert all(np.isfinite(progress.metrics["metric"]) for progress in first.heard)


def test_cancelling_stops_within_a_step():
    image, _ = scene(size=20, spacing_mm=(10, 10, 10))
    listener = Listener(at_step=3, error=Cancelled())
    with pytest.raises(Cancelled):
        register(image, scene(moved(), size=20, spacing_mm=(10, 10, 10))[0], report=listener)
    assert listener.heard[-1].step == 3


def test_a_picture_that_shows_a_part_of_the_body_is_rejected():
    fixed, moving = scene()[0], scene()[0]
    part = Volume(moving.array[:14], moving.affine)
    found = register(fixed, part)
    assert not found.accepted
    assert found.coverage < 0.6
    assert f"the moving image covers {found.coverage:.0%} of the fixed body, at least 60%" in found.rejected


def test_an_implausible_change_of_volume_is_rejected():
    fixed, moving = scene(moved(0, (1.25, 1.25, 1.25), (0, 0, 0)))[0], scene()[0]
    found = register(fixed, moving, RegistrationRecipe(metric="l2", determinant=(0.5, 1.5)))
    assert found.determinant == pytest.approx(1.25**3, rel=0.05)
    assert found.rejected == f"it changes volumes by {found.determinant:.3g}, allowed is 0.5 to 1.5"


def test_a_transform_that_makes_nothing_better_is_rejected(monkeypatch):
    image, _ = scene(size=24, spacing_mm=(8, 8, 8))
    monkeypatch.setattr(registration._Search, "run", lambda search, start: moved())
    assert register(image, image).rejected.startswith("the images agree no better than before")


def test_images_that_lose_each_other_are_rejected(monkeypatch):
    def lost(search, level, *images_and_start):
        raise registration._LostError("all samples map outside")

    image, _ = scene(size=24, spacing_mm=(8, 8, 8))
    monkeypatch.setattr(registration._Search, "_run_level", lost)
    assert register(image, image).rejected == "the images lost each other: all samples map outside"


def test_a_few_slices_are_rejected_and_no_error():
    image, _ = scene(size=24, spacing_mm=(8, 8, 8))
    found = register(image, Volume(image.array[10:11], image.affine))
    assert found.rejected == "one of the images is 1 voxels thick, at least 4 are needed"
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["after"] is None


def test_the_mode_of_the_gradients_is_decided_for_both_images_together(monkeypatch):
    seen = []
    monkeypatch.setattr(AnatomySpace, "apply", lambda space, volume: seen.append(space.mode) or volume)
    thin, thick = (Volume(np.random.default_rng(0).random((8, 8, 8)), np.diag([1.0, 1, mm, 1])) for mm in (1, 5))
    registration._comparable(thin, thick, "l2_gradient", AnatomySpace())
    assert seen == ["2d", "2d"]


def test_options_that_do_not_exist_are_refused_and_the_recipe_survives_json():
    with pytest.raises(InputError, match="metric"):
        RegistrationRecipe(metric="Syn")
    with pytest.raises(InputError, match="type_of_transforme"):
        from_dict(RegistrationRecipe, {"type_of_transforme": "Syn"})
    with pytest.raises(InputError, match="determinant"):
        RegistrationRecipe(determinant=(2.0, 0.5))
    recipe = RegistrationRecipe(metric="mi", determinant=(0.8, 1.25))
    assert from_dict(RegistrationRecipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


# ------------------------------------------------------------------------------------------------------------- transfer


def test_labels_travel_as_simpleitk_resamples_them():
    import SimpleITK as sitk

    rng = np.random.default_rng(5)
    labels = Volume(rng.integers(0, 5, (9, 14, 12)).astype(np.uint16), moved(20.0, (-1.5, 1.5, 3.0), (3.0, 8.0, -2.0)))
    onto = Volume(np.zeros((11, 13, 10), np.int16), moved(-10.0, (-1.2, 1.1, 2.3), (2.0, 9.0, 0.0)))
    moving_from_fixed = moved(4.0, (1.02, 0.97, 1.1), (1.3, -0.7, 0.4))
    found = transferred(labels, moving_from_fixed, onto)
    transform = registration._transform_of(moving_from_fixed, (1.0, 2.0, 3.0))
    assert np.allclose(registration._matrix_of(transform), moving_from_fixed)
    expected = sitk.Resample(
        image_from(labels.array, labels.affine),
        image_from(onto.array, onto.affine),
        transform,
        sitk.sitkNearestNeighbor,
        0,
    )
    assert np.array_equal(found.array, sitk.GetArrayFromImage(expected))
    assert found.array.any()
    assert found.array.dtype == np.uint16
    assert found.same_geometry(onto)
    Labelmap(found, {})  # may be saved as it is


def a_pool(*names):
    return [Size(name, {0: float(number)}, (1, 1, 1)) for number, name in enumerate(names, start=1)]


CASE = Size("case", {0: 0.0}, (1, 1, 1))


def with_verdicts(monkeypatch, *reasons):
    verdicts = iter(reasons)
    monkeypatch.setattr(
        registration, "register", lambda *a, **k: Registration(np.eye(4), 1.0, 0.5, 1.0, 1.0, next(verdicts))
    )


def test_when_the_best_match_does_not_register_the_second_is_asked(monkeypatch):
    image, labels = scene(size=8, spacing_mm=(24, 24, 24))
    asked = []
    with_verdicts(monkeypatch, "no", "")
    found = borrow_labels(CASE, image, a_pool("a", "b", "c"), lambda name: asked.append(name) or (image, labels))
    assert asked == ["a", "b"]
    assert (found.lender, found.reason) == ("b", "")
    assert found.labels is not None
    assert np.array_equal(found.labels.array, labels.array)
    rows = json.loads(json.dumps(found.to_dict()))
    assert [(row["name"], row["rejected"]) for row in rows["attempts"]] == [("a", "no"), ("b", "")]


def test_when_nothing_registers_the_case_keeps_its_labels_with_the_reason(monkeypatch):
    image, labels = scene(size=8, spacing_mm=(24, 24, 24))
    with_verdicts(monkeypatch, "no", "neither")
    found = borrow_labels(CASE, image, a_pool("a", "b", "c"), lambda name: (image, labels))
    assert (found.labels, found.lender, found.reason) == (None, "", "a: no; b: neither")
    alone = borrow_labels(CASE, image, [CASE], lambda name: (image, labels))
    assert alone.reason == "there is no other case to borrow from"
