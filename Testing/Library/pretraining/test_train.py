"""Pre-training at toy size: it learns, it resumes, and what it writes can be loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.pretraining import train as module
from FewShotSegLib.pretraining.train import Drawing, Stage, deepened, prompted_loss, train
from FewShotSegLib.progress import Progress
from FewShotSegLib.sam import registry
from FewShotSegLib.sam.compact import CompactArchitecture, build_compact
from FewShotSegLib.sam.loading import load_base, write_model
from FewShotSegLib.sam.network import PromptBatch
from FewShotSegLib.training.fit import Schedule

SIZE = 64
SMALL = CompactArchitecture(image_size=64, widths=(8, 8, 16), dim=32, depth=1, heads=2, decoder_mlp=32)
STAGE = Stage(64, images=1, prompts=2, steps=2, learning_rate=1e-3, warmup_steps=1)
GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A miniature in the place of the model that ships."""
    monkeypatch.setattr(module, "SHIPPED", SMALL)


@pytest.fixture(autouse=True)
def a_generator_of_its_own():  # type: ignore[no-untyped-def]
    with torch.random.fork_rng(devices=[]):
        yield


def run(out: Path, *stages: Stage):  # type: ignore[no-untyped-def]
    return train(list(stages), out, seed=1, workers=0, device="cpu")


def test_two_stages_write_a_model_that_loads_and_was_trained(small: None, tmp_path: Path, a_home: Path) -> None:
    out = tmp_path / "model.safetensors"
    trained = run(out, STAGE, replace(STAGE, image_size=128, steps=1))
    loaded = load_base(registry.add(out, "compact", "mine").name)
    assert loaded.image_size == 64
    torch.manual_seed(1)
    start = build_compact(SMALL).state_dict()
    for name, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    changed = {name for name, value in trained.state_dict().items() if not torch.equal(value, start[name])}
    assert GAUSSIAN not in changed
    assert {"image_encoder.pos_embed", "mask_decoder.mask_tokens.weight", "image_encoder.stem2.0.0.weight"} <= changed


def test_the_same_seed_gives_the_same_file(small: None, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / f"{name}.safetensors", STAGE)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_killed_run_resumes_to_the_same_file(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = replace(STAGE, steps=4)
    monkeypatch.setattr(
        module, "Schedule", lambda *given, **named: Schedule(*given, **{**named, "checkpoint_seconds": 0.0})
    )
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    run(whole, stage)

    def dying(stage_name: str):  # type: ignore[no-untyped-def]
        def report(progress: Progress) -> None:
            if progress.step == 2:
                raise Cancelled

        return report

    with monkeypatch.context() as patch:
        patch.setattr(module, "logged", dying)
        with pytest.raises(Cancelled):
            run(killed, stage)
    assert not killed.exists()
    identity = f"pretraining 1 0 {stage}"
    assert module.steps_done(tmp_path / "killed-stage0.ckpt", identity) == 2
    with pytest.raises(InputError, match="interrupted training of this name with other"):
        module.steps_done(tmp_path / "killed-stage0.ckpt", "another")
    run(killed, stage)
    assert killed.read_bytes() == whole.read_bytes()


def test_a_few_steps_on_one_task_lower_its_loss() -> None:
    torch.manual_seed(0)
    network = build_compact(SMALL)
    batch = Drawing(replace(STAGE, images=2), seed=0)(0)
    optimizer, losses = torch.optim.AdamW(network.parameters(), lr=3e-3), []
    for _ in range(25):
        optimizer.zero_grad()
        loss, metrics = prompted_loss(network, batch, np.random.default_rng(0), rounds=2)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    assert set(metrics) == {"dice1", "dice2"}
    assert all(0 <= value <= 1 for value in metrics.values())


def test_the_masks_between_the_first_and_the_last_are_made_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_compact(SMALL)
    decode, learning = network.decode, []

    def watched(*given):  # type: ignore[no-untyped-def]
        learning.append(torch.is_grad_enabled())
        return decode(*given)

    monkeypatch.setattr(network, "decode", watched)
    batch = Drawing(STAGE, seed=0)(0)
    for rounds, wanted in ((1, [True]), (2, [True, True]), (4, [True, False, False, True])):
        learning.clear()
        prompted_loss(network, batch, np.random.default_rng(0), rounds)
        assert learning == wanted


def test_every_parameter_that_is_trained_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = build_compact(SMALL)
    batch = Drawing(replace(STAGE, images=2, prompts=6), seed=0)(0)
    prompted_loss(network, batch, np.random.default_rng(0), rounds=3)[0].backward()
    silent = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    # The loss takes the best of tokens 1 to 3, so one of them may be idle in a single step.
    assert {name for name in silent if "output_hypernetworks_mlps" not in name} == set()


def test_the_file_holds_half_precision_and_the_architecture(tmp_path: Path) -> None:
    from safetensors import safe_open

    network = build_compact(SMALL)
    write_model(network, tmp_path / "model.safetensors", SMALL.to_dict())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(network.state_dict())
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118 - no mapping
        assert '"kind": "compact"' in file.metadata()["fewshotseg"]
    assert not list(tmp_path.glob("*.part*"))


def test_more_blocks_start_with_the_same_masks_and_learn() -> None:
    torch.manual_seed(0)
    earlier = build_compact(SMALL)
    later = deepened(earlier, replace(SMALL, depth=3))
    assert len(later.image_encoder.blocks) == 3
    images, coords, labels = torch.rand(1, 64, 64), torch.full((1, 3, 2), 20.0), torch.tensor([[1, -1, -1]])
    answers = [n.decode(n.encode(n.normalize(images)), PromptBatch(coords, labels)) for n in (earlier, later)]
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other)
    answers[1][0].square().mean().backward()
    assert later.image_encoder.blocks[2].mlp.lin2.weight.grad.abs().max() > 0


def test_a_later_stage_may_have_more_blocks_and_draws_scenes_of_its_own(
    small: None, tmp_path: Path, a_home: Path
) -> None:
    out = tmp_path / "model.safetensors"
    trained = run(out, replace(STAGE, depth=1), replace(STAGE, depth=2))
    assert len(trained.image_encoder.blocks) == 2
    assert len(load_base(registry.add(out, "compact", "mine").name).image_encoder.blocks) == 2
    scenes = [Drawing(STAGE, seed=1, number=number)(0)[0] for number in (0, 1)]
    assert not torch.equal(*scenes)


def test_the_tasks_of_a_step_belong_to_its_number_and_seed() -> None:
    stage = Stage(SIZE, images=2, prompts=2, steps=5, learning_rate=1e-3)
    drawing = Drawing(stage, seed=3)
    for first, second in zip(drawing(3), Drawing(stage, seed=3)(3), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(drawing(0)[0], drawing(1)[0])
    assert not torch.equal(drawing(0)[0], Drawing(stage, seed=4)(0)[0])
    assert [tuple(tensor.shape) for tensor in drawing(0)] == [(2, 64, 64), (2, 2, 32, 32), (2, 2, 3, 2), (2, 2, 3)]


def test_cached_steps_are_read_back_as_they_were_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(SIZE, images=2, prompts=2, steps=5, learning_rate=1e-3)
    fresh, writing, reading = (Drawing(stage, 3, cache=folder) for folder in (None, tmp_path, tmp_path))
    first = [fresh(step) for step in (0, 2)]
    assert all(
        torch.equal(a, b)
        for step, old in zip((0, 2), first, strict=True)
        for a, b in zip(old, writing(step), strict=True)
    )
    monkeypatch.setattr(Drawing, "_draw", lambda *_: pytest.fail("a cached step was drawn again"))
    assert all(
        torch.equal(a, b)
        for step, old in zip((0, 2), first, strict=True)
        for a, b in zip(old, reading(step), strict=True)
    )
    assert not list(tmp_path.rglob("*.part*"))
