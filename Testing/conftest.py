"""What tests start from: small, the real classes, and the same every time."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from FewShotSegLib.exemplar import Exemplar
from FewShotSegLib.progress import Progress, Report
from FewShotSegLib.sam.compact import CompactArchitecture, build_compact
from FewShotSegLib.sam.loading import assemble_sam, sha256_of_network
from FewShotSegLib.sam.modeling import ImageEncoderViT
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.volume import Labelmap, Volume, save_labelmap, save_volume

TINY_COMPACT = CompactArchitecture(image_size=64, widths=(8, 8, 16), dim=32, depth=1, heads=2, decoder_mlp=32)
DISC, SQUARE = 1, 2


def discs(rng: np.random.Generator, shape: tuple[int, int, int] = (6, 64, 64)) -> tuple[Volume, np.ndarray]:
    """A noisy CT-like volume with a bright disc (label 1) and a dark square (label 2) in every slice."""
    count, height, width = shape
    y, x = np.mgrid[:height, :width]
    labels = np.zeros(shape, np.uint8)
    for k in range(count):
        row, column = rng.uniform(0.25, 0.42, 2) * height
        radius = rng.uniform(0.12, 0.17) * height
        labels[k][(y - row) ** 2 + (x - column) ** 2 < radius**2] = DISC
        top, left = (int(v) for v in rng.uniform(0.55, 0.7, 2) * height)
        side = int(rng.uniform(0.14, 0.22) * height)
        labels[k, top : top + side, left : left + side] = SQUARE
    image = np.array([0, 120, -90])[labels] + rng.normal(0, 12, shape)
    image[:, 0, 0] = -1000  # air, so that the numbers look like Hounsfield units
    return Volume(image.astype(np.int16), np.diag([-1.0, -1.0, 4.0, 1.0])), labels


@pytest.fixture
def an_rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def a_volume(an_rng: np.random.Generator) -> Volume:
    return discs(an_rng)[0]


@pytest.fixture
def an_exemplar(an_rng: np.random.Generator) -> Exemplar:
    volume, labels = discs(an_rng)
    known = np.zeros_like(labels)
    known[[1, 3]] = labels[[1, 3]]
    return Exemplar(volume, known, {DISC: "disc", SQUARE: "square"}, axis=0, annotated_slices=(1, 3), name="discs")


@pytest.fixture
def a_silent_report() -> Report:
    return lambda progress: None


@pytest.fixture
def a_tiny_sam() -> PromptableNetwork:
    """Segment Anything's own classes at 64 pixels, untrained, the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        encoder = ImageEncoderViT(
            img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, out_chans=32,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=4, global_attn_indexes=(1,),
        )  # fmt: skip
        network = assemble_sam(
            encoder, image_size=64, patch=8, prompt_dim=32, mlp_dim=64, iou_hidden=32, name="tiny_sam"
        )
    network.sha256 = sha256_of_network(network)
    return network.eval().requires_grad_(False)


@pytest.fixture
def a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for models, empty and away from the real one; inherited by child processes."""
    home = tmp_path / "home"
    monkeypatch.setenv("FEWSHOTSEG_HOME", str(home))
    monkeypatch.delenv("FEWSHOTSEG_MODELS", raising=False)
    return home


@pytest.fixture
def a_tiny_base(a_home: Path, tmp_path: Path) -> str:
    """The name of a registered compact model, untrained, that adapts in milliseconds."""
    from FewShotSegLib import base_models

    path = tmp_path / "models" / "tiny.safetensors"
    save_tiny_compact(path)
    return base_models.add(path, "compact", "tiny").name


def save_tiny_compact(path: Path, seed: int = 0) -> None:
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = build_compact(TINY_COMPACT)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, path, metadata={"fewshotseg": json.dumps(TINY_COMPACT.to_dict())})


@pytest.fixture
def write_case(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write a case of discs; returns the files of image and labelmap."""

    def write(name: str, seed: int = 0, folder: Path = tmp_path) -> tuple[Path, Path]:
        volume, labels = discs(np.random.default_rng(seed))
        image, labelmap = folder / f"{name}.nrrd", folder / f"{name}.seg.nrrd"
        folder.mkdir(parents=True, exist_ok=True)
        save_volume(volume, image)
        save_labelmap(Labelmap(volume.like(labels), {DISC: "disc", SQUARE: "square"}), labelmap)
        return image, labelmap

    return write


class Listener:
    """A report that remembers, and stops the work when told to."""

    def __init__(self, at_step: int | None = None, error: BaseException | None = None) -> None:
        self.heard: list[Progress] = []
        self.at_step, self.error = at_step, error

    def __call__(self, progress: Progress) -> None:
        self.heard.append(progress)
        if self.error is not None and progress.step == self.at_step:
            raise self.error

    @property
    def messages(self) -> list[str]:
        return [progress.message for progress in self.heard]


@pytest.fixture
def a_listener() -> Listener:
    return Listener()
