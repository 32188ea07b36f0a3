"""What of CUDA graphs can be seen without a GPU: which calls are recorded. `test_gpu.py` has the recordings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from FewShotSegLib.progress import silent
from FewShotSegLib.sam import cuda_graphs
from FewShotSegLib.sam.cuda_graphs import Form, GraphedInference, TrainingGraphs, graphed_training
from FewShotSegLib.sam.network import Embedding, PromptableNetwork, PromptBatch
from FewShotSegLib.training.fit import Schedule, fit


def an_embedding(skips: int) -> Embedding:
    return Embedding(torch.rand(1, 4, 2, 2), tuple(torch.rand(1, 2, 4, 4) for _ in range(skips)))


@pytest.mark.parametrize("skips", [0, 3])
@pytest.mark.parametrize("optional", [(), ("masks",), ("tokens",), ("masks", "has_mask", "tokens")])
def test_prompts_come_back_from_their_flat_form(skips: int, optional: tuple[str, ...]) -> None:
    parts = {"masks": torch.rand(2, 1, 8, 8), "has_mask": torch.tensor([True, False]), "tokens": torch.rand(2, 3, 4)}
    given = {name: parts[name] for name in optional}
    embedding, prompts = an_embedding(skips), PromptBatch(torch.rand(2, 3, 2), torch.ones(2, 3), **given)
    form = Form.of(embedding, prompts)
    again, same = form.unflat(form.flat(embedding, prompts))
    assert again.features is embedding.features
    assert again.skips == embedding.skips
    for name in ("coords", "labels", "masks", "has_mask", "tokens"):
        assert getattr(same, name) is getattr(prompts, name)


class Recorder(GraphedInference):
    """Counts what would be recorded."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.recorded, self.error = 0, error

    def _recorded(self, call: Callable[..., tuple[Tensor, ...]], arguments: object, network: nn.Module):
        self.recorded += 1
        if self.error:
            raise self.error
        return lambda *given: tuple(result + 100 for result in call(*given))


def twice(x: Tensor) -> tuple[Tensor, ...]:
    return (2 * x,)


def test_a_call_is_recorded_when_its_kind_comes_a_second_time() -> None:
    graphs, network = Recorder(), nn.Linear(1, 1)
    ask = [float(graphs("double", twice, [torch.ones(1)], network)[0]) for _ in range(2)]
    assert ask == [2, 102]
    assert graphs.recorded == len(graphs) == 1
    assert graphs.replayed("double", [torch.ones(2)]) is None
    assert graphs.replayed("another", [torch.ones(1)]) is None
    found = graphs.replayed("double", [torch.full((1,), 3.0)])
    assert found is not None
    assert float(found[0]) == 106


def test_shapes_precisions_and_autocast_are_kinds_of_their_own() -> None:
    graphs, network = Recorder(), nn.Linear(1, 1)
    for given in (torch.ones(1), torch.ones(2), torch.ones(1, dtype=torch.float64)):
        graphs("double", twice, [given], network)
    with torch.autocast("cpu", torch.bfloat16):
        graphs("double", twice, [torch.ones(1)], network)
    assert graphs.recorded == 0


def test_after_so_many_graphs_no_more_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    graphs, network = Recorder(), nn.Linear(1, 1)
    for size in (1, 2, 3):
        for _ in range(3):
            assert graphs.replayed("double", [torch.ones(size)]) or graphs("double", twice, [torch.ones(size)], network)
    assert graphs.recorded == len(graphs) == 2


def test_where_recording_fails_the_network_answers_as_it_is_and_this_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    graphs, network = Recorder(RuntimeError("no room for a stream")), nn.Linear(1, 1)
    for size in (1, 1, 2, 2):
        assert float(graphs("double", twice, [torch.ones(size)], network)[0][0]) == 2
    assert graphs.recorded == 1
    assert [record.getMessage() for record in caplog.records] == [
        "Predicting without CUDA graphs, which takes longer: no room for a stream"
    ]


def test_where_graphs_need_too_much_memory_they_are_given_up_and_the_answer_comes_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    graphs, network = Recorder(), nn.Linear(1, 1)
    for _ in range(2):
        graphs("double", twice, [torch.ones(1)], network)
    assert len(graphs) == 1
    graphs.error = torch.OutOfMemoryError("CUDA out of memory")
    for _ in range(3):
        assert float(graphs("double", twice, [torch.ones(2)], network)[0][0]) == 2
    assert len(graphs) == 0
    assert graphs.replayed("double", [torch.ones(1)]) is None
    assert [record.getMessage() for record in caplog.records] == [
        "Predicting without CUDA graphs, which takes longer: CUDA out of memory"
    ]


def test_on_a_processor_training_is_as_it_is(a_tiny_sam: PromptableNetwork) -> None:
    with graphed_training(a_tiny_sam) as begin:
        begin()
        assert "encode" not in vars(a_tiny_sam)


class CapturesNothing(TrainingGraphs):
    """Notes at every capture which gradient accumulators are older than it."""

    def __init__(self, network: PromptableNetwork) -> None:
        super().__init__(network)
        self.captured: list[str] = []
        self.old = 0

    def mark(self) -> None:
        for parameter in learning(self.network):
            accumulator_of(parameter).metadata["marked"] = True

    def _captured(self, module: nn.Module, samples: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        self.captured.append(type(module).__name__)
        self.old += sum("marked" in accumulator_of(parameter).metadata for parameter in learning(self.network))
        return module


def learning(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def accumulator_of(parameter: Tensor) -> Any:
    """The node of autograd that adds to the gradient of a parameter; it lives as long as a graph that ends in it."""
    node = parameter.view_as(parameter).grad_fn
    assert node is not None
    return node.next_functions[0][0]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_is_new_in_a_step_is_captured_before_the_next_one_when_no_graph_of_its_parameters_is_alive(
    a_tiny_sam: PromptableNetwork, accumulate: int
) -> None:
    network = a_tiny_sam.requires_grad_(True)
    graphs = CapturesNothing(network)
    images, prompts = (
        torch.rand(1, 3, 64, 64),
        PromptBatch(torch.rand(1, 2, 2) * 64, torch.ones(1, 2, dtype=torch.int64)),
    )
    many = PromptBatch(prompts.coords.repeat(2, 1, 1), prompts.labels.repeat(2, 1))
    captured = []

    def loss_at(number: int) -> tuple[Tensor, dict[str, float]]:
        graphs.begin()
        captured.append(list(graphs.captured))
        embedding = graphs.encode(images)
        answers = [graphs.decode(embedding, asked)[0] for asked in (prompts, many)]
        graphs.mark()
        return torch.cat(answers).square().mean(), {}

    parameters = {name: p for name, p in network.named_parameters() if "pe_layer" not in name}
    fit(parameters, loss_at, Schedule(4, 1e-5, accumulate=accumulate), report=silent)
    assert captured[:3] == [[], ["_Encoding", "_Decoding", "_Decoding"], ["_Encoding", "_Decoding", "_Decoding"]]
    assert graphs.old == 0
    assert len(graphs) == 3


def test_a_call_that_comes_twice_in_a_step_has_two_graphs(a_tiny_sam: PromptableNetwork) -> None:
    graphs = CapturesNothing(a_tiny_sam.requires_grad_(True))
    for _ in range(2):
        graphs.begin()
        for _ in range(2):
            graphs.encode(torch.rand(1, 3, 64, 64))
    assert len(graphs) == 2


def test_where_a_capture_fails_training_goes_on_without_graphs_and_this_is_said_once(
    a_tiny_sam: PromptableNetwork, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    graphs = CapturesNothing(a_tiny_sam.requires_grad_(True))

    def fails(module: nn.Module, samples: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    images = torch.rand(1, 3, 64, 64)
    graphs.begin()
    wanted = graphs.encode(images).features
    monkeypatch.setattr(graphs, "_captured", fails)
    for _ in range(3):
        graphs.begin()
        assert torch.equal(graphs.encode(images).features, wanted)
    assert len(graphs) == 0
    assert [record.getMessage() for record in caplog.records] == [
        "Training without CUDA graphs, which takes longer: CUDA out of memory"
    ]


def test_a_graph_of_one_precision_is_not_captured_in_another(a_tiny_sam: PromptableNetwork) -> None:
    graphs = CapturesNothing(a_tiny_sam.requires_grad_(True))
    images = torch.rand(1, 3, 64, 64)
    graphs.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        graphs.begin()
        assert graphs.captured == []
        graphs.encode(images)
    graphs.begin()
    assert graphs.captured == ["_Encoding"]
