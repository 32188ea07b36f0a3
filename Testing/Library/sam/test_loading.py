"""Checkpoint files -> networks. A miniature stands in for ViT-B so that the files are small."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from FewShotSegLib.errors import InputError
from FewShotSegLib.pretraining.train import SHIPPED
from FewShotSegLib.sam import loading, registry
from FewShotSegLib.sam.compact import build_compact
from FewShotSegLib.sam.loading import build_sam, load_base, write_model
from FewShotSegLib.sam.network import PADDING, POSITIVE, PromptBatch
from FewShotSegLib.sam.tiny_vit import build_litemedsam
from Testing.conftest import sha256_of_network

HEADS, WIDTH = 2, 32
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def a_miniature_vit_b(monkeypatch: pytest.MonkeyPatch, a_home: Path) -> None:
    """Two blocks, the second with global attention, and a decoder of width 32 instead of 256."""
    monkeypatch.setitem(loading.VIT, "vit_b", (WIDTH, 2, HEADS, (1,)))
    monkeypatch.setattr(loading, "PROMPT_DIM", 32)


def seeded(build, *arguments):  # type: ignore[no-untyped-def]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        network = build(*arguments)
        with torch.no_grad():  # SAM's own classes start these at zero
            for name, parameter in network.named_parameters():
                if "rel_pos" in name or "pos_embed" in name:
                    parameter.normal_()
        return network


@pytest.fixture
def official() -> State:
    """What Meta's file holds: the state of a network for 1024 pixels, nothing around it."""
    return {name: value.clone() for name, value in seeded(build_sam, "vit_b").state_dict().items()}


def added(path: Path, state: object, architecture: str = "vit_b") -> str:
    torch.save(state, path)
    return registry.add(path, architecture, "mine").name


def test_an_official_checkpoint_loads_bit_by_bit_frozen_and_ready(tmp_path: Path, official: State) -> None:
    name = added(tmp_path / "sam.pth", official)
    network = load_base(name)
    loaded = network.state_dict()
    assert loaded.keys() == official.keys()
    assert all(torch.equal(loaded[key], official[key]) for key in official)  # the same size interpolates nothing
    assert (network.name, network.image_size, network.training) == ("mine", 1024, False)
    assert len(network.sha256) == 64
    assert not any(p.requires_grad for p in network.parameters())


def test_the_bundled_model_can_be_had_at_a_larger_size_under_a_name_of_its_own() -> None:
    small, large = load_base("bundled-small"), load_base("bundled-small-384")
    assert (small.image_size, large.image_size) == (160, 384)
    assert (large.name, large.sha256) == ("bundled-small-384", small.sha256)  # so adapters of one go with the other
    assert load_base("bundled-small-384", image_size=96).image_size == 96


def test_a_checkpoint_may_lie_under_the_key_model_and_in_half_precision(tmp_path: Path, official: State) -> None:
    halved = {key: value.half() for key, value in official.items()}
    network = load_base(added(tmp_path / "sam.pth", {"model": halved, "epoch": 3}))
    assert all(p.dtype == torch.float32 for p in network.parameters())
    torch.testing.assert_close(
        network.image_encoder.pos_embed, official["image_encoder.pos_embed"], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("image_size", "grid"), [(256, 16), (512, 32), (1024, 64)])
def test_position_embeddings_follow_the_image_size_and_window_blocks_do_not(
    tmp_path: Path, official: State, image_size: int, grid: int
) -> None:
    encoder = load_base(added(tmp_path / "sam.pth", official), image_size=image_size).image_encoder
    assert encoder.pos_embed.shape == (1, grid, grid, WIDTH)
    assert encoder.blocks[1].attn.rel_pos_h.shape == (2 * grid - 1, WIDTH // HEADS)
    assert encoder.blocks[1].attn.rel_pos_w.shape == (2 * grid - 1, WIDTH // HEADS)
    assert torch.equal(encoder.blocks[0].attn.rel_pos_w, official["image_encoder.blocks.0.attn.rel_pos_w"])  # 14 x 14


def test_positions_are_interpolated_linearly_with_pixel_areas_aligned(tmp_path: Path, official: State) -> None:
    encoder = load_base(added(tmp_path / "sam.pth", official), image_size=512).image_encoder
    # Half the size: each new centre lies in the middle of four old ones.
    expected = F.avg_pool2d(official["image_encoder.pos_embed"].permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(encoder.pos_embed.detach(), expected)
    old = official["image_encoder.blocks.1.attn.rel_pos_h"].numpy()
    at = (np.arange(63) + 0.5) * 127 / 63 - 0.5
    expected_rel = np.stack([ndimage.map_coordinates(c, [at], order=1, mode="nearest") for c in old.T], 1)
    np.testing.assert_allclose(encoder.blocks[1].attn.rel_pos_h.detach().numpy(), expected_rel, atol=1e-4)


def test_a_network_of_another_size_gives_masks_of_that_size(tmp_path: Path, official: State) -> None:
    network = load_base(added(tmp_path / "sam.pth", official), image_size=256)
    with torch.inference_mode():
        embedding = network.encode(network.normalize(torch.zeros(1, 256, 256)))
        logits, _ = network.decode(embedding, PromptBatch(torch.tensor([[[9.0, 9], [0, 0]]]), torch.tensor([[1, -1]])))
    assert logits.shape == (1, 4, 64, 64)


@pytest.mark.parametrize("size", [100, 48, 1000])
def test_image_sizes_off_the_grid_are_refused(tmp_path: Path, official: State, size: int) -> None:
    with pytest.raises(InputError, match=f"multiples of 16.*got {size}"):
        load_base(added(tmp_path / "sam.pth", official), image_size=size)


def test_a_checkpoint_without_a_parameter_is_refused_by_the_name_of_the_parameter(
    tmp_path: Path, official: State
) -> None:
    del official["mask_decoder.iou_token.weight"]
    with pytest.raises(InputError, match=r"1 parameters are missing, first mask_decoder\.iou_token\.weight"):
        load_base(added(tmp_path / "sam.pth", official))


def test_a_parameter_of_another_shape_is_refused_by_name_and_both_shapes(tmp_path: Path, official: State) -> None:
    official["image_encoder.neck.0.weight"] = torch.zeros(32, 48, 1, 1)
    with pytest.raises(InputError, match=r"neck\.0\.weight has shape \(32, 48, 1, 1\).* needs \(32, 32, 1, 1\)"):
        load_base(added(tmp_path / "sam.pth", official))


class Harmful:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Path.touch, (self.path,)


def test_a_file_that_brings_code_along_is_refused_and_the_code_not_run(tmp_path: Path, official: State) -> None:
    trace = tmp_path / "ran"
    with pytest.raises(InputError, match="not a readable PyTorch checkpoint"):
        load_base(added(tmp_path / "sam.pth", official | {"extra": Harmful(trace)}))
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Harmful(trace)))
    with pytest.raises(InputError, match="not a readable PyTorch checkpoint"):
        load_base(registry.add(tmp_path / "plain.pth", "vit_b", "plain").name)
    assert not trace.exists()


def test_a_broken_download_is_refused(tmp_path: Path, official: State) -> None:
    path = tmp_path / "sam.pth"
    torch.save(official, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"sam\.pth is not a readable PyTorch checkpoint.*download it again"):
        load_base(registry.add(path, "vit_b", "mine").name)


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"Unknown architecture 'vit_x'.*vit_b, vit_l, vit_h"):
        build_sam("vit_x")


def test_the_digest_of_a_network_tells_one_bit_apart(official: State) -> None:
    network = seeded(build_sam, "vit_b", 256)
    before = sha256_of_network(network)
    assert sha256_of_network(network) == before
    weight = network.mask_decoder.iou_token.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert sha256_of_network(network) != before


# --- the compact model ----------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    path = tmp_path / "compact.safetensors"
    write_model(seeded(partial(build_compact, SHIPPED)), path, SHIPPED.to_dict())
    return path


def test_the_compact_model_survives_the_file_it_ships_in(shipped: Path) -> None:
    network = load_base(registry.add(shipped, "compact", "small").name)
    assert (network.name, network.image_size, network.training) == ("small", 160, False)
    original = seeded(partial(build_compact, SHIPPED))
    for name, value in original.state_dict().items():
        assert torch.equal(network.state_dict()[name], value.half().float()), name
    assert torch.equal(network.pixel_std, original.pixel_std)  # not in the file
    assert network.padding_points == 2


def test_the_compact_model_takes_another_image_size(shipped: Path) -> None:
    network = load_base(registry.add(shipped, "compact", "small").name, image_size=64)
    with torch.inference_mode():
        embedding = network.encode(network.normalize(torch.zeros(1, 64, 64)))
        prompts = PromptBatch(torch.zeros(1, 3, 2), torch.tensor([[POSITIVE, PADDING, PADDING]]))
        logits, _ = network.decode(embedding, prompts)
    assert (network.image_size, logits.shape) == (64, (1, 4, 32, 32))


def test_a_compact_file_without_a_parameter_is_refused_by_the_name_of_the_parameter(
    tmp_path: Path, shipped: Path
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(shipped, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        metadata = file.metadata()
    del state["mask_decoder.iou_token.weight"]
    save_file(state, tmp_path / "part.safetensors", metadata=metadata)
    with pytest.raises(InputError, match=r"mask_decoder\.iou_token\.weight"):
        load_base(registry.add(tmp_path / "part.safetensors", "compact", "part").name)


def test_files_that_hold_no_compact_model_are_refused(tmp_path: Path, shipped: Path) -> None:
    from safetensors.torch import save_file

    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    with pytest.raises(InputError, match="holds no compact model"):
        load_base(registry.add(other, "compact", "other").name)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(shipped.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a readable model file"):
        load_base(registry.add(broken, "compact", "broken").name)


# --- LiteMedSAM


@pytest.fixture(scope="module")
def litemedsam() -> State:
    """A checkpoint with the names and shapes of the official file, batch norms and interleaved projections included."""
    network = seeded(partial(build_litemedsam, 64))
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("image_encoder.")}
    with np.load(Path(__file__).parents[2] / "Golden" / "tiny_vit.npz") as recorded:
        lines = str(recorded["names"]).split("\n")
    for line in lines:
        name, _, shape = line.partition(" ")
        sizes = [int(side) for side in shape.strip("(),").split(",") if side.strip()]
        value = 0.1 * torch.rand(sizes, generator=torch.Generator().manual_seed(0))
        state[f"image_encoder.{name}"] = 1 + value if name.endswith("running_var") else value - 0.05
    return state


def test_an_official_litemedsam_loads_and_encodes(tmp_path: Path, litemedsam: State) -> None:
    torch.save(litemedsam, tmp_path / "lite_medsam.pth")
    network = load_base(tmp_path / "lite_medsam.pth", image_size=64)
    assert (network.family, network.image_size, network.padding_points) == ("tiny_vit", 64, 1)
    assert torch.isfinite(network.encode(network.normalize(torch.rand(1, 64, 64), "unit")).features).all()
    assert load_base(tmp_path / "lite_medsam.pth").image_size == 256


def test_a_model_of_ours_is_what_was_written(tmp_path: Path) -> None:
    network = seeded(partial(build_litemedsam, 64))
    write_model(network, tmp_path / "own.safetensors", {"kind": "tiny_vit", "padding_points": 2})
    loaded = load_base(tmp_path / "own.safetensors", image_size=96)
    assert (loaded.family, loaded.image_size, loaded.padding_points) == ("tiny_vit", 96, 2)
    assert loaded.scale == "unit"
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name].half().float(), rtol=0, atol=0)


def test_a_checkpoint_that_is_no_litemedsam_is_refused(tmp_path: Path, official: State, litemedsam: State) -> None:
    torch.save(official, tmp_path / "lite_medsam.pth")
    with pytest.raises(InputError, match="is no checkpoint of LiteMedSAM"):
        load_base(tmp_path / "lite_medsam.pth")
    missing = {name: value for name, value in litemedsam.items() if "iou_prediction_head" not in name}
    torch.save(missing, tmp_path / "lite_medsam_2.pth")
    with pytest.raises(InputError, match=r"is no whole model: \d+ parameters differ, first mask_decoder.iou"):
        load_base(tmp_path / "lite_medsam_2.pth")
