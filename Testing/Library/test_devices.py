"""Which device computes, and in which precision."""

from __future__ import annotations

import logging

import pytest
import torch

from FewShotSegLib import devices
from FewShotSegLib.devices import (
    bfloat16_pays,
    choose_device,
    encoding_precision,
    patch_precision,
    training_precision,
    working_kernel,
)
from FewShotSegLib.errors import InputError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_the_precision_can_be_fixed_and_is_told() -> None:
    with encoding_precision("cpu", bfloat16=False) as used:
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is used is torch.float32
    with encoding_precision("cpu") as used:
        assert used is (torch.bfloat16 if bfloat16_pays("cpu") else torch.float32)
    assert not torch.is_autocast_enabled("cpu")
    assert not bfloat16_pays("mps")


@pytest.mark.parametrize(
    ("wanted", "available", "device", "said"),
    [
        ("auto", True, GPU, 0),
        ("auto", False, CPU, 1),
        ("cpu", True, CPU, 0),
        ("cpu", False, CPU, 0),
        ("cuda", True, GPU, 0),
    ],
)
def test_a_gpu_is_used_where_there_is_one_and_its_absence_is_said(
    wanted: str, available: bool, device: torch.device, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    sentences: list[str] = []
    assert choose_device(wanted, sentences.append) == device
    assert len(sentences) == said


def test_a_gpu_that_is_not_there_is_not_replaced_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="No GPU"):
        choose_device("cuda", lambda sentence: None)


@pytest.mark.parametrize(("capability", "pays"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_multiply_bfloat16_from_ampere_on(
    capability: tuple[int, int], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert bfloat16_pays(GPU) is bfloat16_pays("cuda:0") is pays
    assert training_precision(GPU) is (torch.bfloat16 if pays else torch.float16)


@pytest.mark.parametrize(
    ("capabilities", "pays"),
    [({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True)],
)
def test_cpus_say_themselves_whether_they_multiply_bfloat16(
    capabilities: dict[str, bool], pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert devices._cpu_multiplies_bfloat16() is pays


@pytest.mark.parametrize("pays", [True, False])
def test_small_patches_are_trained_in_full_precision(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "bfloat16_pays", lambda device: pays)
    half = torch.bfloat16 if pays else None
    assert patch_precision("cpu") is half  # prediction: no gradients
    assert patch_precision("cpu", (4, 96, 80)) is half
    assert patch_precision("cpu", (200, 96, 79)) is None
    assert training_precision(CPU) is half


def test_a_kernel_is_used_where_it_can_be_imported_and_runs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def missing() -> devices.Kernel:
        raise ImportError("no triton")

    def fails(kernel: devices.Kernel) -> None:
        assert torch.is_grad_enabled()  # the backward pass is tried as well
        raise RuntimeError("no C compiler")

    with torch.inference_mode():
        assert working_kernel(lambda: torch.add, lambda kernel: kernel(torch.ones(1), 1), "Sum") is torch.add
        assert working_kernel(missing, lambda kernel: None, "Sum") is None
        assert not caplog.records
        assert working_kernel(lambda: torch.add, fails, "Sum") is None
    assert [record.getMessage() for record in caplog.records] == ["Sum runs without Triton: no C compiler"]
