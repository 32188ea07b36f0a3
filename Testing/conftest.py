"""What tests start from: small, the real classes, and the same every time."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.io.volumes import save_labelmap, save_volume
from FewShotSegLib.progress import Progress, Report
from FewShotSegLib.sam.compact import CompactArchitecture, build_compact
from FewShotSegLib.sam.loading import assemble_sam
from FewShotSegLib.sam.modeling import ImageEncoderViT
from FewShotSegLib.sam.network import PromptableNetwork

TINY_COMPACT = CompactArchitecture(image_size=64, widths=(8, 8, 16), dim=32, depth=1, heads=2, decoder_mlp=32)
DISC, SQUARE = 1, 2
BALL, BOX = 1, 2
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
QUICK: dict[str, Any] = {
    "image_size": 64,
    "batch_size": 1,
    "steps": 4,
    "validate_every": 0,
    "estimate_folds": 0,
    "guard": "off",
    "token_prompts": 2,
    "click_prompts": 1,
}


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


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """The Dice coefficient of two masks."""
    return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def drawing_by_threads(monkeypatch: pytest.MonkeyPatch, module: ModuleType, source: type, draw: str) -> set[int]:
    """Let `module` draw by threads as on a GPU; the set that is returned gets the threads that call `source.draw`."""
    threads: set[int] = set()
    plain, ahead = getattr(source, draw), module.DrawnByThreads

    def noted(*given: Any) -> Any:
        threads.add(threading.get_ident())
        return plain(*given)

    monkeypatch.setattr(source, draw, noted)
    monkeypatch.setattr(module, "DrawnByThreads", lambda draw, device: ahead(draw, torch.device("cuda")))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    return threads


def placed(shape: tuple[int, int, int], affine: np.ndarray, seed: int = 0) -> tuple[Volume, np.ndarray]:
    """A ball (label 1) and a box (label 2) at places in RAS mm, whatever the voxels; the image tells them apart."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    ras = np.stack([i, j, k], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    labels = np.zeros(shape, np.uint8)
    labels[((ras - [-20, -15, 18]) ** 2).sum(-1) < 13**2] = BALL
    labels[(np.abs(ras - [-45, -50, 30]) < [9, 7, 10]).all(-1)] = BOX
    image = np.array([100.0, 700.0, 400.0])[labels] + np.random.default_rng(seed).uniform(-20, 20, shape)
    return Volume(image.astype(np.float32), affine), labels


def axial(spacing: tuple[float, float, float] = (2.0, 2.0, 4.0), size: tuple[int, int, int] = (30, 40, 12)) -> Any:
    """Shape (K, J, I) and affine of LPS slices that start at the origin."""
    return size[::-1], LPS @ np.diag([*spacing, 1.0])


def sha256_of_network(network: PromptableNetwork) -> str:
    """Digest of all parameters, to prove that a lent network came back unchanged."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
    return tiny_sam()


def tiny_sam() -> PromptableNetwork:
    """Segment Anything's own classes at 64 pixels, untrained, the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        encoder = ImageEncoderViT(
            img_size=64,
            patch_size=8,
            embed_dim=32,
            depth=2,
            num_heads=2,
            mlp_ratio=2,
            out_chans=32,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=4,
            global_attn_indexes=(1,),
        )
        network = assemble_sam(
            encoder, image_size=64, patch=8, prompt_dim=32, mlp_dim=64, iou_hidden=32, name="tiny_sam"
        )
    network.sha256 = sha256_of_network(network)
    return network.eval().requires_grad_(False)


@pytest.fixture
def a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for models, empty and away from the real one; inherited by child processes."""
    return _home(tmp_path / "home", monkeypatch)


def _home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSHOTSEG_HOME", str(folder))
    monkeypatch.delenv("FEWSHOTSEG_MODELS", raising=False)
    return folder


@pytest.fixture
def a_tiny_base(a_home: Path, tmp_path: Path) -> str:
    """The name of a registered compact model, untrained, that adapts in milliseconds."""
    from FewShotSegLib.sam import registry

    save_tiny_compact(tmp_path / "models" / "tiny.safetensors")
    return registry.add(tmp_path / "models" / "tiny.safetensors", "compact", "tiny").name


@pytest.fixture(scope="session")
def _a_trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a tiny base model, and an adapter of it, made once."""
    from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
    from FewShotSegLib.jobs.run import run
    from FewShotSegLib.sam import registry

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        _home(folder / "home", patch)
        save_tiny_compact(folder / "home" / "tiny.safetensors")
        registry.add(folder / "home" / "tiny.safetensors", "compact", "tiny")
        image, labelmap = write_discs(folder, "case", 0)
        exemplar = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
        run(
            AdaptJob(str(folder / "organs.safetensors"), exemplars=(exemplar,), base="tiny", recipe=QUICK, device="cpu")
        )
    return folder


@pytest.fixture
def an_adapter_file(_a_trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter for "disc" and "square" on the registered base model "tiny"; hardly trained, but complete."""
    shutil.copytree(_a_trained_folder / "home", tmp_path / "home", dirs_exist_ok=True)
    _home(tmp_path / "home", monkeypatch)
    path = tmp_path / "organs.safetensors"
    shutil.copy(_a_trained_folder / "organs.safetensors", path)
    return path


def save_tiny_compact(path: Path, seed: int = 0) -> None:
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = build_compact(TINY_COMPACT)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, path, metadata={"fewshotseg": json.dumps(TINY_COMPACT.to_dict())})


def write_discs(folder: Path, name: str, seed: int) -> tuple[Path, Path]:
    """Write a case of discs; returns the files of image and labelmap."""
    volume, labels = discs(np.random.default_rng(seed))
    image, labelmap = folder / f"{name}.nrrd", folder / f"{name}.seg.nrrd"
    folder.mkdir(parents=True, exist_ok=True)
    save_volume(volume, image)
    save_labelmap(Labelmap(volume.like(labels), {DISC: "disc", SQUARE: "square"}), labelmap)
    return image, labelmap


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
