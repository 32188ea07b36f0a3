"""The modelling classes of segment_anything, with and without torchvision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from FewShotSegLib.sam import modeling

REPOSITORY = Path(__file__).resolve().parents[3]

FAKE_TORCHVISION = {
    "__init__.py": "",
    "transforms/__init__.py": "",
    "transforms/functional.py": "def resize(*a): ...\ndef to_pil_image(*a): ...\n",
    "ops/__init__.py": "",
    "ops/boxes.py": "def batched_nms(*a): ...\ndef box_area(*a): ...\n",
}
HIDE_TORCHVISION = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            raise ModuleNotFoundError("torchvision is hidden", name=name)
sys.meta_path.insert(0, Hidden())
"""


def run(code: str, *, path: Path | None = None) -> str:
    """Run `code` in a fresh interpreter, with `path` importable before everything installed."""
    folders = [str(p) for p in (path, REPOSITORY) if p is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder_with_torchvision(tmp_path: Path) -> Path:
    for name, text in FAKE_TORCHVISION.items():
        file = tmp_path / "torchvision" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_the_classes_load_without_torchvision_and_leave_no_trace_under_the_original_name() -> None:
    run(
        HIDE_TORCHVISION + "import FewShotSegLib.sam.modeling as m\n"
        "assert m.ImageEncoderViT(img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=2, out_chans=4)\n"
        "assert not [k for k in sys.modules if k.startswith('segment_anything')]\n"
        "import pytest\n"
        "with pytest.raises(ModuleNotFoundError, match='torchvision'): import segment_anything\n"
    )


def test_a_normal_import_works_afterwards_and_gives_the_same_network(folder_with_torchvision: Path) -> None:
    run(
        "import FewShotSegLib.sam.modeling as ours, sys, torch\n"
        "assert 'torchvision' not in sys.modules\n"
        "import segment_anything\n"
        "assert segment_anything.SamPredictor and 'torchvision' in sys.modules\n"
        "def states(package):\n"
        "    torch.manual_seed(0)\n"
        "    encoder = package.ImageEncoderViT(img_size=32, patch_size=8, embed_dim=8, depth=2, num_heads=2,\n"
        "        out_chans=4, use_rel_pos=True, window_size=3, global_attn_indexes=(1,))\n"
        "    return {**encoder.state_dict(), 'output': encoder(torch.randn(1, 3, 32, 32)).detach()}\n"
        "one, other = states(ours), states(segment_anything.modeling)\n"
        "assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)\n",
        path=folder_with_torchvision,
    )


def test_classes_that_the_user_has_imported_already_are_the_ones_used(folder_with_torchvision: Path) -> None:
    run(
        "import segment_anything, segment_anything.modeling as theirs\n"
        "import FewShotSegLib.sam.modeling as ours\n"
        "assert ours.ImageEncoderViT is theirs.ImageEncoderViT\n"
        "assert ours.Attention is theirs.image_encoder.Attention\n",
        path=folder_with_torchvision,
    )


def test_a_missing_segment_anything_is_named_with_the_command_that_installs_it() -> None:
    run(
        "import importlib.util, pytest\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'segment_anything' else real(name, *a)\n"
        "with pytest.raises(ModuleNotFoundError, match='pip install segment-anything'):\n"
        "    import FewShotSegLib.sam.modeling\n"
    )


def test_every_exported_name_exists_and_windows_return_what_went_in() -> None:
    assert all(hasattr(modeling, name) for name in modeling.__all__)
    tokens = torch.arange(2 * 5 * 7 * 3.0).view(2, 5, 7, 3)
    windows, padded = modeling.window_partition(tokens, 4)
    assert windows.shape == (2 * 2 * 2, 4, 4, 3)
    assert torch.equal(modeling.window_unpartition(windows, 4, padded, (5, 7)), tokens)
