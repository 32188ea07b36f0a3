"""Simulated users: where they click, what they drag, how they correct."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from FewShotSegLib.errors import InputError
from FewShotSegLib.sam.clicks import centre_click, corrected, first_prompt, jittered_box, random_click, tight_box
from FewShotSegLib.sam.network import BOX_CORNER_HIGH, BOX_CORNER_LOW, NEGATIVE, PADDING, POSITIVE, PromptBatch

Mask = NDArray[np.bool_]
ROWS, COLUMNS = np.mgrid[:48, :60]


def disc(row: float, column: float, radius: float) -> Mask:
    return (ROWS - row) ** 2 + (COLUMNS - column) ** 2 <= radius**2


def odd_masks() -> dict[str, Mask]:
    pixel, border, corner, line, full = (np.zeros((48, 60), bool) for _ in range(5))
    pixel[7, 33] = border[10:30, 0] = corner[47, 59] = line[5, 3:50] = True
    full[:] = True
    ring = disc(24, 30, 20) & ~disc(24, 30, 16)
    pieces = disc(8, 8, 5) | disc(40, 50, 2)
    return {
        "pixel": pixel,
        "border": border,
        "corner": corner,
        "line": line,
        "full": full,
        "ring": ring,
        "pieces": pieces,
    }


every_mask = pytest.mark.parametrize("mask", odd_masks().values(), ids=odd_masks().keys())


@pytest.mark.parametrize(("row", "column", "radius"), [(20, 31, 9), (24.5, 20.5, 12), (15, 40, 3.3)])
def test_the_centre_click_of_a_disc_is_its_centre(row: float, column: float, radius: float) -> None:
    x, y = centre_click(disc(row, column, radius))
    assert abs(x - column) <= 1
    assert abs(y - row) <= 1


def test_the_centre_click_of_a_structure_at_the_border_is_off_the_border() -> None:
    mask = np.zeros((48, 60), bool)
    mask[:9, :11] = True
    assert centre_click(mask) == (4, 4)


def test_among_equally_deep_pixels_the_first_is_clicked() -> None:
    mask = np.zeros((20, 20), bool)
    mask[4:7, 3:15] = True
    assert centre_click(mask) == (4, 5)


@every_mask
def test_clicks_always_lie_inside_the_mask(mask: Mask) -> None:
    rng = np.random.default_rng(0)
    clicks = [centre_click(mask), *(random_click(mask, rng, central) for central in (0, 0.5, 1) for _ in range(30))]
    assert all(mask[y, x] for x, y in clicks)


def test_central_clicks_are_deep_inside_and_others_are_anywhere() -> None:
    mask, rng = disc(24, 30, 15), np.random.default_rng(1)
    distance = lambda xy: np.hypot(xy[0] - 30, xy[1] - 24)  # noqa: E731
    assert max(distance(random_click(mask, rng, central=1)) for _ in range(50)) <= 2.5
    # Of a uniform disc a share of 1 - (12 / 15)^2 lies beyond radius 12.
    outer = np.mean([distance(random_click(mask, rng)) > 12 for _ in range(500)])
    assert outer == pytest.approx(1 - (12 / 15) ** 2, abs=0.08)


def test_an_empty_mask_cannot_be_clicked() -> None:
    with pytest.raises(InputError, match="empty mask"):
        centre_click(np.zeros((5, 5), bool))


def test_the_box_of_a_mask_reaches_from_its_first_to_its_last_pixel() -> None:
    mask = np.zeros((30, 30), bool)
    mask[10:20, 12:22] = True
    assert tight_box(mask).tolist() == [[12, 10], [21, 19]]


@every_mask
def test_a_dragged_box_stays_a_box_near_the_structure(mask: Mask) -> None:
    rng, tight = np.random.default_rng(2), tight_box(mask)
    side = tight[1] - tight[0]
    for _ in range(100):
        box = jittered_box(mask, rng)
        assert (box[0] <= box[1]).all()
        assert (np.abs(box - tight) <= np.minimum(0.1 * side + 1, 0.05 * 48) + 1e-4).all()


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("click", [POSITIVE, PADDING, PADDING]),
        ("box", [PADDING, BOX_CORNER_LOW, BOX_CORNER_HIGH]),
        ("both", [POSITIVE, BOX_CORNER_LOW, BOX_CORNER_HIGH]),
    ],
)
def test_a_first_prompt_has_the_labels_of_its_kind(kind: str, labels: list[int]) -> None:
    mask = disc(20, 30, 8)
    coords, given = first_prompt(mask, kind, np.random.default_rng(3))
    assert given.tolist() == labels
    assert (coords.dtype, coords.shape) == (np.float32, (3, 2))
    if kind != "box":
        assert mask[int(coords[0, 1]), int(coords[0, 0])]
    if kind != "click":
        assert (np.abs(coords[1:] - [[22, 12], [38, 28]]) <= 2.6).all()


# --- corrections ----------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts() -> PromptBatch:
    tokens = torch.arange(12.0).reshape(3, 2, 2)
    return PromptBatch(torch.ones(3, 2, 2), torch.tensor([[POSITIVE, PADDING]] * 3), tokens=tokens)


# Masks of 16 x 16 for a square of 64 pixels; mask prompts have 32 x 32.
NETWORK = SimpleNamespace(image_size=64, mask_input_size=32)


def test_a_correction_lies_in_the_error_and_says_what_is_right_there(prompts: PromptBatch) -> None:
    truth = torch.zeros(3, 16, 16)
    truth[:, 4:10, 5:12] = 1
    logits = torch.full((3, 16, 16), -2.0)
    logits[0, 4:10, 5:12] = 2  # right
    logits[1, 4:8, 5:12] = 2  # rows 8 and 9 are missing
    logits[2, 4:10, 5:15] = 2  # columns 12 to 14 are too much
    rng = np.random.default_rng(4)
    for _ in range(20):
        batch = corrected(prompts, logits, truth, NETWORK, rng)  # type: ignore[arg-type]
        assert batch.labels[:, -1].tolist() == [PADDING, POSITIVE, NEGATIVE]
        columns, rows = ((batch.coords[1:, -1] + 0.5) / 4 - 0.5).T.tolist()
        assert rows[0] in (8, 9)
        assert columns[0] in range(5, 12)
        assert rows[1] in range(4, 10)
        assert columns[1] in (12, 13, 14)


def test_a_correction_keeps_what_was_asked_before_and_adds_the_mask(prompts: PromptBatch) -> None:
    logits = 40 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = corrected(prompts, logits, torch.ones(3, 16, 16), NETWORK, np.random.default_rng(0))  # type: ignore[arg-type]
    assert torch.equal(batch.coords[:, :2], prompts.coords)
    assert torch.equal(batch.labels[:, :2], prompts.labels)
    assert batch.tokens is prompts.tokens
    assert batch.masks is not None
    assert batch.masks.shape == (3, 1, 32, 32)
    assert batch.masks.abs().max() <= 16
    middle = torch.nn.functional.interpolate(logits[:, None], (32, 32), mode="bilinear").clamp(-16, 16)
    assert torch.equal(batch.masks, middle)


def test_a_central_correction_falls_where_most_around_is_wrong() -> None:
    prompts = PromptBatch(torch.zeros(1, 1, 2), torch.full((1, 1), POSITIVE))
    truth, logits = torch.zeros(1, 16, 16), torch.full((1, 16, 16), -1.0)
    truth[0, 2:9, 3:10] = 1  # missed as a whole; its middle is (5, 6)
    truth[0, 14, 14] = 1
    for seed in range(5):
        batch = corrected(prompts, logits, truth, NETWORK, np.random.default_rng(seed), central=1.0)  # type: ignore[arg-type]
        column, row = ((batch.coords[0, -1] + 0.5) / 4 - 0.5).tolist()
        assert abs(row - 5) <= 1
        assert abs(column - 6) <= 1
