"""The console API with real workers and a tiny model: adapting, segmenting, comparing, batches, and mishaps."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.io.volumes import load_labelmap, save_volume
from FewShotSegLib.worker import scratch
from FewShotSegSlicer import Logic as LogicModule
from FewShotSegSlicer.Jobs.AdapterFolder import AdapterFolder
from FewShotSegSlicer.Logic import Logic
from FewShotSegSlicer.Prompting.Prompts import SlicePrompt
from FewShotSegSlicer.Scene import Geometry, Segmentations
from FewShotSegSlicer.Workers.Run import Run
from FewShotSegSlicer.Workers.Workers import Workers
from Testing.conftest import QUICK, dice, discs
from Testing.Extension.cases import addCase, labelsOf
from Testing.Extension.launched import pidBehind

PATIENCE_S = 300.0
TINY: dict[str, Any] = {"base": "tiny", "recipe": QUICK, "device": "cpu"}
ENDLESS: dict[str, Any] = {**TINY, "recipe": {**QUICK, "steps": 100_000, "checkpoint_seconds": 0}}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module", autouse=True)
def home(_a_trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with the base model "tiny", and a temporary folder that can be looked into."""
    folder = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOTSEG_HOME", str(_a_trained_folder / "home"))
        patch.delenv("FEWSHOTSEG_MODELS", raising=False)
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def sharedWorkers(home: Path) -> Iterator[Workers]:
    """One pair of processes for all tests that leave them alive; starting one takes seconds."""
    workers = Workers(environment=ONE_THREAD)
    yield workers
    workers.close()


@pytest.fixture
def logic(scene: Any, sharedWorkers: Workers, tmp_path: Path) -> Iterator[Logic]:
    yield from ready(Logic(sharedWorkers), tmp_path)


@pytest.fixture
def ownLogic(scene: Any, tmp_path: Path) -> Iterator[Logic]:
    """With processes of its own, for tests that kill them."""
    made = Logic(Workers(environment=ONE_THREAD))
    yield from ready(made, tmp_path)
    made.close()


def ready(logic: Logic, folder: Path) -> Iterator[Logic]:
    logic.adapterFolder.setFolder(folder / "Adapters")
    yield logic
    logic.cancel()
    waitUntil(logic, lambda: not logic.runs)
    logic.exemplars.close()


@pytest.fixture
def adapter(_a_trained_folder: Path) -> str:
    """Of "disc" and "square" on the base model "tiny"; hardly trained, but complete."""
    return str(_a_trained_folder / "organs.safetensors")


def waitUntil(logic: Logic, condition: Callable[[], Any]) -> None:
    started = time.monotonic()
    while not condition():
        waited = time.monotonic() - started
        assert waited < PATIENCE_S, "it never happened"
        logic.poll()
        slicer.app.processEvents()
        time.sleep(0.005 if waited < 1 else 0.02)


def ended(logic: Logic, run: Run) -> Run:
    waitUntil(logic, lambda: not run.isRunning)
    return run


def training(logic: Logic, **settings: Any) -> Run:
    """A run that is training, and will for ever."""
    volumeNode, segmentationNode, *_ = addCase()
    run = logic.adapt([(volumeNode, segmentationNode)], **{**ENDLESS, **settings})
    waitUntil(logic, lambda: run.canKeepBest or not run.isRunning)
    assert run.isRunning, run.error
    return run


@pytest.fixture
def ours(home: Path) -> Path:
    """Where this process has its temporary files."""
    return scratch.process_folder()


def fullFolders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and any(path.iterdir())}


def filesIn(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def isAlive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pidOf(logic: Logic, worker: Any) -> int:
    found: list[int] = []
    logic.workers.request(worker, {"op": "hello"}, onResult=lambda result: found.append(result["pid"]))
    waitUntil(logic, lambda: found)
    return found[0]


# ------------------------------------------------------------------------------------------------------- as documented


class QuickLogic(Logic):
    """The defaults train for a minute; these do not."""

    def adapt(self, *arguments: Any, **settings: Any) -> Any:
        return super().adapt(*arguments, **settings, **TINY)


def test_the_console_example_works_as_written(
    scene: Any,
    sharedWorkers: Workers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logic = QuickLogic(sharedWorkers)
    logic.adapterFolder.setFolder(tmp_path / "Adapters")
    monkeypatch.setattr(slicer.util, "getModuleLogic", lambda name: logic)
    monkeypatch.chdir(tmp_path)
    volumeNode, segmentationNode, *_ = addCase()
    for seed, name in ((1, "a.nrrd"), (2, "b.nii.gz")):
        save_volume(discs(np.random.default_rng(seed))[0], name)
    lines = (LogicModule.__doc__ or "").split("\n\n")[1].splitlines()
    example = "\n".join(line.removeprefix("    ") for line in lines)
    names: dict[str, Any] = {"slicer": slicer, "outputDir": "segmented"}
    names |= {"volumeNode": volumeNode, "segmentationNode": segmentationNode}
    exec(example, names)
    assert "logic.processBatch(" in example
    assert load_adapter(names["adapter"]).structures == {1: "disc", 2: "square"}
    assert [card["path"] for card in logic.adapters()] == [names["adapter"]]
    written = {f"{name}{end}" for name in "ab" for end in (".seg.nrrd", ".result.json")}
    assert filesIn(tmp_path / "segmented") == written | {"volumes.csv", ".volumes.csv.result.json"}
    assert "a: slice 1 of 6" in capsys.readouterr().out
    logic.exemplars.close()


# ------------------------------------------------------------------------------------------------------------ adapting


def test_adapting_to_nodes_gives_a_file_in_the_list_with_its_card(logic: Logic, ours: Path) -> None:
    before = fullFolders(ours)
    volumeNode, segmentationNode, *_ = addCase(name="patient: 7")
    told: list[str] = []
    logic.adapterFolder.changed.connect(lambda: told.append(logic.adapters()[0]["name"]))
    path = logic.adapt([(volumeNode, segmentationNode)], waitForCompletion=True, **TINY)
    (card,) = logic.adapters()
    assert (card["path"], card["isNew"]) == (path, True)
    assert card["name"].startswith("disc-square 20")
    assert told == [card["name"]]
    assert card["structures"] == {"1": "disc", "2": "square"}
    (source,) = card["provenance"]["exemplars"]
    assert (source["name"], source["annotated_slices"]) == ("exemplar 1", [1, 3])
    assert fullFolders(ours) <= before


def test_without_exemplars_those_of_the_scene_are_learned(logic: Logic) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    logic.exemplars.addSlice(volumeNode, segmentationNode, 0, 3)
    logic.exemplars.markEmpty(volumeNode, 0, 5)
    card = logic.adapterFolder.card(logic.adapt(waitForCompletion=True, name="only one", **TINY))
    assert card["name"] == "only one"
    (source,) = card["provenance"]["exemplars"]
    assert (source["annotated_slices"], source["empty_slices"]) == ([3], 1)


def test_a_run_tells_how_far_it_is_and_calls_back(logic: Logic) -> None:
    heard: list[Any] = []
    volumeNode, segmentationNode, *_ = addCase()
    recipe = {**QUICK, "steps": 6, "estimate_folds": 2, "validate_every": 3}
    callbacks = {"progress": heard.append, "onDone": lambda path: heard.append(path)}
    out = logic.adapterFolder.folder / "mine.safetensors"
    run = logic.adapt([(volumeNode, segmentationNode)], out=out, **callbacks, **{**TINY, "recipe": recipe})
    assert logic.runs == (run,)
    ended(logic, run)
    assert heard[-1] == run.result == str(logic.adapterFolder.folder / "mine.safetensors")
    shares = [message["fraction"] for message in run.history]
    assert shares == pytest.approx([step / 10 for step in range(1, 11)])
    assert all("loss" in message["metrics"] for message in run.history)
    assert sum("score" in message["metrics"] for message in run.history) >= 2
    assert logic.runs == ()


def test_given_slices_axis_and_window_are_used(logic: Logic) -> None:
    volumeNode, segmentationNode, *_ = addCase(slices=None)
    path = logic.adapt([(volumeNode, segmentationNode, (22, 45), 2)], waitForCompletion=True, window=(-50, 150), **TINY)
    found = load_adapter(path)
    assert (found.axis, found.intensity.low, found.intensity.high) == (2, -50, 150)
    assert found.provenance["exemplars"][0]["annotated_slices"] == [22, 45]


def test_a_single_sagittal_slice_is_recognized(logic: Logic) -> None:
    volumeNode, segmentationNode, *_ = addCase(slices=(20,), axis=2)
    path = logic.adapt([(volumeNode, segmentationNode)], waitForCompletion=True, **TINY)
    (source,) = load_adapter(path).provenance["exemplars"]
    assert (source["axis"], source["annotated_slices"]) == (2, [20])


def test_training_goes_on_from_an_adapter_with_further_exemplars(logic: Logic) -> None:
    first, second = addCase(0, name="first"), addCase(1, name="second")
    square = Segmentations.segmentsByName(second[1])["square"]
    logic.exemplars.addSlice(second[0], second[1], 0, 1, [square])  # the numbers would be others if they were counted
    logic.exemplars.addSlice(first[0], first[1], 0, 1)
    start = logic.adapt([first[:2]], waitForCompletion=True, name="start", **TINY)
    path = logic.adapt(waitForCompletion=True, warmStart="start", recipe=QUICK, device="cpu", name="further")
    assert load_adapter(path).structures == load_adapter(start).structures == {1: "disc", 2: "square"}
    logic.exemplars.enableForStructures([])
    logic.exemplars.setEnabled(logic.exemplars.list()[0].id, True)
    with pytest.raises(InputError, match="was trained on disc, square; the exemplars show square"):
        logic.adapt(waitForCompletion=True, warmStart=path, recipe=QUICK)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "There is no exemplar yet"),
        ({"exemplars": []}, "At least one exemplar is needed"),
        ({"exemplars": ["CT"]}, r"An exemplar is given as \(volumeNode, segmentationNode\)"),
        ({"warmStart": "nowhere"}, "There is no adapter nowhere"),
    ],
)
def test_what_is_missing_is_said_at_once_and_leaves_no_files(
    logic: Logic, arguments: dict[str, Any], sentence: str, ours: Path
) -> None:
    before = filesIn(ours)
    with pytest.raises(InputError, match=sentence):
        logic.adapt(**{**TINY, **arguments})
    assert filesIn(ours) == before
    assert logic.runs == ()


def test_a_mistake_that_the_worker_finds_is_raised_in_its_words(logic: Logic) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    with pytest.raises(InputError, match='did you mean "steps"'):
        logic.adapt([(volumeNode, segmentationNode)], base="tiny", recipe={"stepps": 3}, waitForCompletion=True)
    with pytest.raises(InputError, match="Unknown method 'magic'"):
        logic.adapt([(volumeNode, segmentationNode)], method="magic", waitForCompletion=True)


def test_without_the_packages_the_user_is_told_to_install_them(logic: Logic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogicModule.Dependencies, "missing", lambda: ("torch>=2.4",))
    volumeNode, segmentationNode, *_ = addCase()
    for action in (
        lambda: logic.adapt([(volumeNode, segmentationNode)]),
        lambda: logic.measure([(volumeNode, segmentationNode)]),
        lambda: logic.segment(volumeNode, prompts=[{"points_ijk": [[1, 1, 1]]}]),
    ):
        with pytest.raises(InputError, match=r"torch>=2\.4.*Install"):
            action()


# ------------------------------------------------------------------------------------------------ before and during it


def test_methods_are_described_by_the_worker_and_remembered(logic: Logic) -> None:
    found: list[Any] = []
    logic.methods(found.append, lambda kind, message: pytest.fail(message))
    waitUntil(logic, lambda: found)
    assert {"name", "label", "about", "needs", "options"} <= set(found[0][0])
    logic.methods(found.append, lambda kind, message: pytest.fail(message))
    assert found[1] is found[0]  # at once


def test_what_it_will_take_is_measured(logic: Logic, home: Path) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    found = logic.measure([(volumeNode, segmentationNode)], waitForCompletion=True, **ENDLESS)
    assert found["seconds"] > 1000 * found["seconds_per_step"] > 0
    assert found["device"] == "cpu"
    assert logic.adapters() == []


def test_samples_can_be_looked_at_before_training(logic: Logic) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    sheets = [
        logic.preview([(volumeNode, segmentationNode)], count=2, waitForCompletion=True, **TINY) for _ in range(2)
    ]
    assert sheets[0] != sheets[1]
    assert all(Path(sheet).read_bytes().startswith(b"\x89PNG") for sheet in sheets)


def test_clicks_are_answered_while_training_goes_on(logic: Logic, adapter: str) -> None:
    run = training(logic)
    volumeNode = slicer.util.getNode("CT")
    started = time.monotonic()
    found = logic.compare(volumeNode, 0, 2, adapter, SlicePrompt().withPoint(rasOf(volumeNode, (22, 24, 2)), True))
    assert found is not None
    assert run.isRunning, f"{time.monotonic() - started:.1f} s"


def rasOf(volumeNode: Any, ijk: tuple[float, float, float]) -> Any:
    return (Geometry.rasFromIjk(volumeNode) @ [*ijk, 1])[:3]


def test_cancelling_leaves_nothing(logic: Logic, ours: Path) -> None:
    before = fullFolders(ours)
    run = training(logic)
    assert len(fullFolders(ours) - before) >= 1
    logic.cancel()
    ended(logic, run)
    assert run.errorKind == "cancelled"
    assert filesIn(logic.adapterFolder.folder) == set()
    assert fullFolders(ours) <= before


def test_stopping_keeps_the_best_so_far(logic: Logic) -> None:
    run = training(logic)
    logic.stopAndKeepBest()
    ended(logic, run)
    assert load_adapter(run.result).metrics["stopped_by"] == "user"
    with pytest.raises(InputError, match="No training is running"):
        logic.stopAndKeepBest()


def test_an_interrupted_wait_gives_the_run_up(logic: Logic) -> None:
    volumeNode, segmentationNode, *_ = addCase()

    def interrupt(message: Any) -> None:
        if message["message"] == "adapting" and message["step"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        logic.adapt([(volumeNode, segmentationNode)], waitForCompletion=True, progress=interrupt, **ENDLESS)
    waitUntil(logic, lambda: not logic.runs)
    assert filesIn(logic.adapterFolder.folder) == set()


# --------------------------------------------------------------------------------------------------- what can go wrong


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_process_is_explained_and_the_training_goes_on_when_asked_again(ownLogic: Logic) -> None:
    logic = ownLogic
    pid = pidOf(logic, "job")
    volumeNode, segmentationNode, *_ = addCase()
    settings = {**TINY, "recipe": {**QUICK, "steps": 24, "checkpoint_seconds": 0}}
    run = logic.adapt([(volumeNode, segmentationNode)], **settings)
    waitUntil(logic, lambda: run.progress is not None and run.progress["step"] >= 4)
    os.kill(pid, signal.SIGKILL)
    ended(logic, run)
    assert run.errorKind == "dead"
    assert "It was killed or has crashed" in (run.error or "")
    assert "adapt again with the same settings to resume" in (run.error or "")
    assert not any(name.endswith(".safetensors") for name in filesIn(logic.adapterFolder.folder))
    assert segmentationNode.GetSegmentation().GetNumberOfSegments() == 2
    again = ended(logic, logic.adapt([(volumeNode, segmentationNode)], **settings))
    assert again.error is None, again.error
    assert again.history[0]["step"] >= 4
    assert filesIn(logic.adapterFolder.folder) == {
        f"{Path(again.result).stem}{end}" for end in (".safetensors", ".result.json")
    }


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_training_goes_on_in_a_later_session_and_only_when_it_is_the_same(
    ownLogic: Logic, tmp_path: Path
) -> None:
    run = training(ownLogic)
    os.kill(pidOfJob(ownLogic), signal.SIGKILL)
    ended(ownLogic, run)
    ownLogic.close()
    later = Logic(Workers(environment=ONE_THREAD))
    later.adapterFolder.setFolder(ownLogic.adapterFolder.folder)
    try:
        (interrupted,) = later.interrupted()
        assert interrupted.structures == ("disc", "square")
        other = training(later, seed=1)
        assert other.history[0]["step"] == 1
        other.cancel()
        ended(later, other)
        assert later.interrupted() == [interrupted]
        again = training(later)
        assert again.history[0]["step"] > 1
        assert later.interrupted() == []
        again.cancel()
        ended(later, again)
        assert filesIn(later.adapterFolder.folder) == set()
    finally:
        later.close()


def pidOfJob(logic: Logic) -> int:
    return pidBehind(logic.workers._clients["job"].pid)


def test_closing_the_scene_during_training_does_not_disturb_it(logic: Logic) -> None:
    run = training(logic)
    slicer.mrmlScene.Clear(0)
    slicer.app.processEvents()
    step = run.progress["step"] if run.progress else 0
    waitUntil(logic, lambda: run.progress is not None and run.progress["step"] > step)
    run.stopAndKeepBest()
    ended(logic, run)
    assert [card["path"] for card in logic.adapters()] == [run.result]


def test_removing_the_volume_during_training_does_not_disturb_it(logic: Logic) -> None:
    run = training(logic)
    for node in (slicer.util.getNode("CT"), slicer.util.getNode("drawn")):
        slicer.mrmlScene.RemoveNode(node)
    run.stopAndKeepBest()
    ended(logic, run)
    assert load_adapter(run.result).structures == {1: "disc", 2: "square"}


def test_a_volume_that_is_removed_while_it_is_segmented_is_named(logic: Logic, adapter: str) -> None:
    volumeNode, segmentationNode, *_ = addCase(name="gone soon")
    run = logic.segment(volumeNode, adapter, segmentationNode, device="cpu", waitForCompletion=False)
    slicer.mrmlScene.RemoveNode(volumeNode)
    ended(logic, run)
    assert run.errorKind == "input"
    assert 'The segmentation of "gone soon" is ready, but the volume is not in the scene any more' in (run.error or "")


def test_a_segmentation_that_is_removed_meanwhile_is_replaced(logic: Logic, adapter: str) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    run = logic.segment(volumeNode, adapter, segmentationNode, device="cpu", waitForCompletion=False)
    slicer.mrmlScene.RemoveNode(segmentationNode)
    ended(logic, run)
    assert run.result is not segmentationNode
    assert set(Segmentations.segmentsByName(run.result)) == {"disc", "square"}


def test_closing_leaves_no_process_and_no_file(scene: Any, tmp_path: Path, home: Path, ours: Path) -> None:
    before = filesIn(home), filesIn(ours)
    logic = Logic(Workers(environment=ONE_THREAD))
    logic.adapterFolder.setFolder(tmp_path / "Adapters")
    pids = [pidOf(logic, worker) for worker in ("prompt", "job")]
    run = training(logic)
    started = time.monotonic()
    logic.close()
    assert time.monotonic() - started < 10
    # A busy system takes a moment to end what was killed.
    waitUntil(logic, lambda: not any(isAlive(pid) for pid in pids))
    assert (filesIn(home), filesIn(ours)) == before
    assert not any(name.endswith(".safetensors") for name in filesIn(tmp_path / "Adapters"))
    assert (run.isRunning, run.errorKind) == (False, "cancelled")
    logic.poll()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_nothing_opens_a_socket_while_adapting(scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the worker every use of the module socket is noted and refused; what C++ opens shows among its files."""
    witness = tmp_path / "sockets.txt"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        "def hook(event, arguments):\n"
        "    if event.startswith('socket.'):\n"
        f"        with open({str(witness)!r}, 'a') as file: file.write(event + '\\n')\n"
        "        raise PermissionError(event)\n"
        "sys.addaudithook(hook)\n",
        encoding="utf-8",
    )
    root = Path(LogicModule.__file__).resolve().parents[2]
    logic = Logic(
        Workers(environment={**ONE_THREAD, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(root)])})
    )
    logic.adapterFolder.setFolder(tmp_path / "Adapters")
    try:
        run = training(logic)
        links = [link.readlink() for link in Path(f"/proc/{pidOfJob(logic)}/fd").iterdir()]
        assert len(links) > 3
        assert [link for link in links if str(link).startswith("socket:")] == []
        run.stopAndKeepBest()
        assert ended(logic, run).error is None
    finally:
        logic.close()
    assert not witness.exists(), witness.read_text(encoding="utf-8")
    assert witnessWorks(tmp_path / "site", witness)


def witnessWorks(site: Path, witness: Path) -> bool:
    import subprocess

    code = "import socket; socket.socket()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True
    )
    return done.returncode != 0 and witness.exists()


# ---------------------------------------------------------------------------------------------------------- segmenting


def test_a_volume_is_segmented_into_a_new_node(logic: Logic, adapter: str, tmp_path: Path) -> None:
    volumeNode, _, volume, _ = addCase(3, name="new patient")
    save_volume(volume, tmp_path / "same.nrrd")
    node = logic.segment(volumeNode, adapter, device="cpu")
    assert node.GetName() == "new patient organs"
    logic.processBatch([tmp_path / "same.nrrd"], adapter, tmp_path / "out", device="cpu")
    expected = load_labelmap(tmp_path / "out" / "same.seg.nrrd")
    assert np.array_equal(labelsOf(node, volumeNode), expected.volume.array)


def test_what_was_drawn_on_slices_that_were_learned_from_stays(logic: Logic, adapter: str) -> None:
    volumeNode, segmentationNode, _, labels = addCase()
    path = logic.adapt([(volumeNode, segmentationNode)], waitForCompletion=True, **TINY)
    Segmentations.addSegment(segmentationNode, "mine alone")
    pure = labelsOf(logic.segment(volumeNode, path, device="cpu"), volumeNode)
    assert not np.array_equal(pure[[1, 3]], labels[[1, 3]])  # it is hardly trained
    assert logic.segment(volumeNode, path, segmentationNode, device="cpu") is segmentationNode
    assert list(Segmentations.segmentsByName(segmentationNode)) == ["disc", "square", "mine alone"]
    ids = list(Segmentations.segmentsByName(segmentationNode).values())[:2]
    found = Segmentations.labelmapFromSegmentation(segmentationNode, volumeNode, ids).volume.array
    assert np.array_equal(found[[1, 3]], labels[[1, 3]])
    assert np.array_equal(found[[0, 2, 4, 5]], pure[[0, 2, 4, 5]])


def test_exemplars_of_the_scene_stay_too(logic: Logic, adapter: str) -> None:
    volumeNode, segmentationNode, _, labels = addCase()
    logic.exemplars.addSlice(volumeNode, segmentationNode, 0, 3)
    logic.segment(volumeNode, adapter, segmentationNode, device="cpu")
    assert np.array_equal(labelsOf(segmentationNode, volumeNode)[3], labels[3])


def test_a_volume_that_moves_meanwhile_keeps_its_segmentation_on_its_voxels(logic: Logic, adapter: str) -> None:
    volumeNode, *_ = addCase(3)
    still = labelsOf(logic.segment(volumeNode, adapter, device="cpu"), volumeNode)
    run = logic.segment(volumeNode, adapter, device="cpu", waitForCompletion=False)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.array([[0.0, -1, 0, 40], [1, 0, 0, 0], [0, 0, 1, -7], [0, 0, 0, 1]])
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    volumeNode.SetAndObserveTransformNodeID(transform.GetID())
    ended(logic, run)
    assert run.result.GetTransformNodeID() == transform.GetID()
    assert np.array_equal(labelsOf(run.result, volumeNode), still)


def test_prompts_alone_and_prompts_saved_with_a_segmentation_are_enough(logic: Logic) -> None:
    volumeNode, *_ = addCase(3)
    click = Prompt(0, 2, np.array([[22.0, 24.0, 2.0]]), np.array([1]), structure="disc")
    node = logic.segment(volumeNode, prompts=[click], base="tiny", device="cpu")
    assert list(Segmentations.segmentsByName(node)) == ["disc"]
    assert node.GetName() == "CT segmentation"
    drawn = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "clicked")
    drawn.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    disc = Segmentations.addSegment(drawn, "disc")
    logic.live.setTarget(volumeNode, drawn, disc)
    logic.live.setModel(None, "tiny")
    logic.live.setSlice(0, 2)
    logic.live.addPoint(0, 2, rasOf(volumeNode, (22, 24, 2)), True)
    again = logic.segment(volumeNode, None, drawn, prompts=True, base="tiny", device="cpu")
    assert again is drawn
    masks = [
        Segmentations.sliceMask(n, Segmentations.segmentsByName(n)["disc"], volumeNode, 0, 2) for n in (node, drawn)
    ]
    assert np.array_equal(*masks)
    logic.live.setTarget(None, None, None)


def test_exemplars_segment_another_volume_without_training(logic: Logic) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    other, _, _, truth = addCase(3, slices=None, name="other")
    logic.exemplars.addSlice(volumeNode, segmentationNode, 0, 1)
    logic.exemplars.addSlice(volumeNode, segmentationNode, 0, 3)
    lines: list[str] = []
    node = logic.segment(other, base="tiny", support=True, device="cpu", progress=lambda told: lines.append(str(told)))
    assert node.GetName() == "other from exemplars"
    assert list(Segmentations.segmentsByName(node)) == ["disc", "square"]
    found = labelsOf(node, other)
    for value in (1, 2):
        assert dice(found == value, truth == value) > 0.5
    assert any("exemplar picture" in line for line in lines)
    assert logic.adapters() == []
    given = logic.segment(other, base="tiny", support=[(volumeNode, segmentationNode)], device="cpu")
    assert np.array_equal(labelsOf(given, other), found)
    blind = logic.segment(other, base="tiny", support=True, window=(5000.0, 6000.0), device="cpu")
    assert not np.array_equal(labelsOf(blind, other), found)


def test_slices_that_support_are_kept_in_their_own_segmentation(logic: Logic) -> None:
    volumeNode, segmentationNode, _, labels = addCase()
    given = [(volumeNode, segmentationNode)]
    assert (
        logic.segment(volumeNode, None, segmentationNode, base="tiny", support=given, device="cpu") is segmentationNode
    )
    found = labelsOf(segmentationNode, volumeNode)
    assert np.array_equal(found[[1, 3]], labels[[1, 3]])
    assert found[2].any()


def test_a_support_set_that_shows_nothing_is_refused_in_one_sentence(logic: Logic) -> None:
    volumeNode, _, _, _ = addCase()
    with pytest.raises(InputError, match="exemplar"):
        logic.segment(volumeNode, base="tiny", support=True, device="cpu")
    empty = Segmentations.newSegmentation(volumeNode)
    with pytest.raises(InputError, match="Nothing is drawn in"):
        logic.segment(volumeNode, base="tiny", support=[(volumeNode, empty)], device="cpu")


def test_segmenting_with_nothing_to_go_by_is_refused(logic: Logic, adapter: str) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    with pytest.raises(InputError, match="needs an adapter, a support set or prompts"):
        logic.segment(volumeNode)
    with pytest.raises(InputError, match="There are no prompts"):
        logic.segment(volumeNode, adapter, segmentationNode, prompts=True)
    with pytest.raises(InputError, match="There is no adapter nowhere"):
        logic.segment(volumeNode, "nowhere")
    with pytest.raises(TypeError, match="colour"):
        logic.segment(volumeNode, adapter, colour="red")


# ----------------------------------------------------------------------------------------------------------- comparing


def test_base_and_adapter_are_compared_on_the_same_click(logic: Logic, adapter: str) -> None:
    volumeNode, *_ = addCase(3)
    click = SlicePrompt().withPoint(rasOf(volumeNode, (22, 24, 2)), True)
    found = logic.compare(volumeNode, 0, 2, adapter, click, structure="disc", device="cpu")
    assert found is not None
    assert found.base.shape == found.adapted.shape == found.image.shape == (64, 64)
    assert found.image.dtype == np.uint8
    assert not np.array_equal(found.base, found.adapted)
    assert (found.added, found.removed) == ((found.adapted & ~found.base).sum(), (found.base & ~found.adapted).sum())
    assert found.onScreen(found.image, 128).shape == (128, 128)
    done: list[Any] = []
    logic.compare(volumeNode, 0, 2, adapter, None, done.append, pytest.fail, device="cpu")
    waitUntil(logic, lambda: done)
    assert not done[0].base.any()
    assert done[0].baseConfidence is None
    with pytest.raises(InputError, match="k=0 to 5"):
        logic.compare(volumeNode, 0, 77, adapter, click)


def test_the_slice_to_annotate_next_is_none_that_is_known(logic: Logic, adapter: str) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    logic.exemplars.addSlice(volumeNode, segmentationNode, 0, 1)
    axis, index = logic.suggestNextSlice(volumeNode, adapter, device="cpu")
    assert axis == 0
    assert index in (3, 4, 5)
    told: list[Any] = []
    run = logic.suggestNextSlice(volumeNode, adapter, onDone=told.append, device="cpu")
    assert ended(logic, run).result == (axis, index) == told[0]


def test_a_new_adapter_is_kept_renamed_and_discarded(logic: Logic) -> None:
    volumeNode, segmentationNode, *_ = addCase()
    path = logic.adapt([(volumeNode, segmentationNode)], waitForCompletion=True, **TINY)
    kept = logic.keep(path, "discs")
    assert [(card["name"], card["isNew"]) for card in logic.adapters()] == [("discs", False)]
    logic.discard(logic.rename(kept, "other"))
    assert logic.adapters() == []


# --------------------------------------------------------------------------------------------------------------- batch


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "images" / name for name in ("p1.nrrd", "p2.nii.gz")]
    for seed, path in enumerate(paths):
        save_volume(discs(np.random.default_rng(seed))[0], path)
    return paths


def rowsOf(table: str) -> list[dict[str, str]]:
    with Path(table).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_folder_is_segmented_and_a_second_run_makes_nothing_again(
    logic: Logic, adapter: str, images: list[Path], tmp_path: Path
) -> None:
    lines: list[str] = []
    out = tmp_path / "out"
    table = logic.processBatch(
        images[0].parent, adapter, out, progress=lambda told: lines.append(str(told)), device="cpu"
    )
    assert table == str(out / "volumes.csv")
    rows = rowsOf(table)
    assert [(Path(row["image"]).name, row["structure"]) for row in rows] == [
        (path.name, name) for path in images for name in ("disc", "square")
    ]
    assert all(float(row["volume_ml"]) >= 0 and row["state"] == "segmented" for row in rows)
    assert any(line.startswith(" 58 %  p2: slice 1 of 6") for line in lines)
    again = rowsOf(logic.processBatch(images, adapter, out, device="cpu"))
    assert [{**row, "state": ""} for row in again] == [{**row, "state": ""} for row in rows]
    assert {row["state"] for row in again} == {"there already"}


def test_two_processes_give_the_same_files_and_the_same_table(
    logic: Logic, adapter: str, images: list[Path], tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    broken = images[0].with_name("p3.nrrd")
    broken.write_bytes(b"nothing")
    asked = [images[0], broken, images[1]]
    lines: list[str] = []
    table = logic.processBatch(
        asked, adapter, two, processes=2, progress=lambda told: lines.append(str(told)), device="cpu"
    )
    assert rowsOf(table) == rowsOf(logic.processBatch(asked, adapter, one, device="cpu"))
    assert [row["state"] for row in rowsOf(table)] == ["segmented"] * 2 + ["failed"] + ["segmented"] * 2
    assert filesIn(one) == filesIn(two)
    for name in ("p1.seg.nrrd", "p2.seg.nrrd"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert any("of 3 jobs done" in line for line in lines)


def test_a_batch_in_two_processes_that_was_cancelled_goes_on(
    logic: Logic, adapter: str, images: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def stop(message: Any) -> None:
        if message["message"].startswith("1 of 2 jobs done"):
            logic.cancel()

    options: dict[str, Any] = {"processes": 2, "device": "cpu"}
    run = logic.processBatch(images, adapter, out, progress=stop, waitForCompletion=False, **options)
    ended(logic, run)
    rows = rowsOf(logic.processBatch(images, adapter, out, **options))
    assert len(rows) == 2 * len(images)
    if run.errorKind == "cancelled":  # or it was faster
        assert [row["state"] for row in rows].count("there already") >= 2  # what had ended is not done again
    assert not [name for name in filesIn(out) if ".part" in name or name.endswith((".fewshotseg", ".running.csv"))]


def test_a_batch_that_was_cancelled_goes_on(logic: Logic, adapter: str, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stop(message: Any) -> None:
        if message["message"].startswith("p2: slice"):
            logic.cancel()

    run = logic.processBatch(images, adapter, out, progress=stop, waitForCompletion=False, device="cpu")
    ended(logic, run)
    if run.errorKind == "cancelled":  # or it was faster
        assert "p1.seg.nrrd" in filesIn(out)
        assert "p2.seg.nrrd" not in filesIn(out)
    rows = rowsOf(logic.processBatch(images, adapter, out, device="cpu"))
    assert rows[0]["state"] == "there already"
    assert filesIn(out) >= {"p1.seg.nrrd", "p2.seg.nrrd", "volumes.csv"}


def test_a_broken_file_is_named_in_the_table_and_stops_nobody(
    logic: Logic, adapter: str, images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images[0].write_bytes(b"nothing")
    run = logic.processBatch(images, adapter, tmp_path / "out", device="cpu", waitForCompletion=False)
    rows = rowsOf(ended(logic, run).result)
    assert [row["state"] for row in rows] == ["failed", "segmented", "segmented"]
    assert "p1.nrrd" in caplog.text
    assert any("p1.nrrd failed" in warning for warning in run.record["warnings"])  # type: ignore[index]
    with pytest.raises(InputError, match=r"None of 1 volumes could be segmented.*p1\.nrrd"):
        logic.processBatch(images[:1], adapter, tmp_path / "out", device="cpu")


def test_volumes_of_the_scene_and_sequences_are_called_by_their_names(
    logic: Logic, adapter: str, tmp_path: Path, home: Path
) -> None:
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "beating: heart")
    for seed in range(2):
        volumeNode, *_ = addCase(seed)
        sequence.SetDataNodeAtValue(volumeNode, str(seed))
    table = logic.processBatch(sequence, adapter, tmp_path / "out", device="cpu")
    names = [row["image"] for row in rowsOf(table)]
    assert names == ["beating: heart 1"] * 2 + ["beating: heart 2"] * 2
    assert "beating_ heart 2.seg.nrrd" in filesIn(tmp_path / "out")
    again = rowsOf(logic.processBatch(sequence, adapter, tmp_path / "out", device="cpu"))
    assert {row["state"] for row in again} == {"there already"}
    table = logic.processBatch([volumeNode], adapter, tmp_path / "one", device="cpu")
    assert {row["image"] for row in rowsOf(table)} == {"CT"}
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    with pytest.raises(InputError, match='"drawn" is neither a volume nor a sequence'):
        logic.processBatch(segmentation, adapter, tmp_path / "out")
    with pytest.raises(InputError, match="nowhere"):
        logic.processBatch("nowhere", adapter, tmp_path / "out")
    with pytest.raises(InputError, match="At least one process"):
        logic.processBatch("nowhere", adapter, tmp_path / "out", processes=0)


def test_results_say_where_they_come_from(logic: Logic, adapter: str, images: list[Path], tmp_path: Path) -> None:
    logic.processBatch(images[:1], AdapterFolder(Path(adapter).parent).cards()[0], tmp_path / "out", device="cpu")
    record = json.loads((tmp_path / "out" / "p1.result.json").read_text(encoding="utf-8"))
    assert record["job"]["adapter"] == adapter


def test_cancelled_is_an_exception_of_its_own(logic: Logic) -> None:
    run = training(logic)
    run.cancel()
    ended(logic, run)
    with pytest.raises(Cancelled):
        run.valueOrError()
