"""What the module can do, on nodes and files; the panel, the Python console and tests call the same. No Qt.

    logic = slicer.util.getModuleLogic("FewShotSeg")
    adapter = logic.adapt(exemplars=[(volumeNode, segmentationNode)], method="lora", waitForCompletion=True)
    logic.segment(volumeNode, adapter, segmentationNode)
    logic.segment(volumeNode, support=[(volumeNode, segmentationNode)])
    logic.processBatch(["a.nrrd", "b.nii.gz"], adapter, outputDir, progress=print)

The job worker does the heavy work. Where nobody waits for it a `Run` comes back at once, and callbacks are called from
`poll`, which the panel calls by a timer: progress(RunProgress), then onDone(result) or onError(kind, message), kinds as
in `Workers`. What the user can mend is an `InputError`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import slicer

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles, SegmentJob, to_dict
from FewShotSegLib.data.volume import AXIS_LETTERS
from FewShotSegLib.errors import InputError
from FewShotSegLib.worker import scratch
from FewShotSegSlicer.Exemplars.ExemplarStore import ExemplarStore
from FewShotSegSlicer.Jobs.AdapterFolder import AdapterFolder
from FewShotSegSlicer.Jobs.AdaptSettings import AdaptSettings, TaughtSlices
from FewShotSegSlicer.Jobs.Checkpoints import Checkpoints, Interrupted
from FewShotSegSlicer.Jobs.Comparison import Comparing, Comparison, entryOf
from FewShotSegSlicer.Jobs.SegmentSettings import promptEntries, segmentOptions, volumeFiles
from FewShotSegSlicer.Prompting.LiveSegmenter import LiveSegmenter
from FewShotSegSlicer.Prompting.Target import Target
from FewShotSegSlicer.Scene import Results, Volumes
from FewShotSegSlicer.Workers.JobFiles import JobFiles
from FewShotSegSlicer.Workers.Run import Run
from FewShotSegSlicer.Workers.Workers import Workers

from . import Dependencies

Callback = Callable[..., Any]
AdapterLike = str | Path | Mapping[str, Any]  # file, name in the adapter folder, or card

_TURN_S = 0.01


class Logic:
    """Adapts, segments, compares and suggests."""

    def __init__(self, workers: Workers | None = None) -> None:
        self.workers = workers or Workers()
        self.live = LiveSegmenter(self.workers)
        self.exemplars = ExemplarStore()
        self.adapterFolder = AdapterFolder()
        self.whileBusy: Callable[[], AbstractContextManager[Any]] = nullcontext
        """What to do while the caller has to wait, as the panel shows another cursor."""
        self._runs: list[Run] = []
        self._taught: list[TaughtSlices] = []
        self._checkpoints = Checkpoints()
        self._methods: list[dict[str, Any]] | None = None
        self._sheets: JobFiles | None = None
        self._compared: Target | None = None
        self.exemplars.changed.connect(self._forgetLostNodes)
        scratch.remove_abandoned()

    def poll(self) -> None:
        """Take in what the workers have answered; returns at once. To be called every few hundredths of a second."""
        self.workers.poll()
        self.live.poll()
        self._runs = [run for run in self._runs if run.isRunning]

    def restartWorkers(self) -> None:
        """End the processes, as after packages were installed; the next request starts new ones. Runs are cancelled."""
        self.workers.close()
        for run in self.runs:
            run.drop("the worker was restarted")

    def close(self) -> None:
        """End the processes and whatever they are doing, and remove every file that was made for them; checkpoints of
        adaptations that were interrupted before are kept.
        """
        self.workers.close()
        for run in self.runs:
            run.drop("the module was closed", isToldOf=False)
        if self._sheets is not None:
            self._sheets.remove()
        self.exemplars.close()

    def _forgetLostNodes(self) -> None:
        """Volumes of a closed scene would stay in memory."""
        self._taught = [one for one in self._taught if all(map(Results.isInScene, one.nodes))]
        if self._compared is not None and not Results.isInScene(self._compared.volumeNode):
            self._compared.forgetVolume()
            self._compared = None

    # ------------------------------------------------------------------------------------------------------- adapting

    def methods(self, onDone: Callback, onError: Callback) -> None:
        """Ask which methods of adaptation there are: onDone(list of {"name", "label", "about", "needs", "options"}),
        options as in FewShotSegLib.data.recipe.describe. Only the worker can import them.
        """
        if self._methods is not None:
            onDone(self._methods)
            return

        def take(result: dict[str, Any]) -> None:
            self._methods = result["methods"]
            onDone(self._methods)

        self.workers.request("prompt", {"op": "methods"}, onResult=take, onError=onError)

    def adapt(
        self,
        exemplars: Sequence[tuple[Any, ...]] | None = None,
        method: str = "lora",
        *,
        name: str = "",
        out: str | Path | None = None,
        progress: Callback | None = None,
        onDone: Callback | None = None,
        onError: Callback | None = None,
        waitForCompletion: bool = False,
        **settings: Any,
    ) -> Any:
        """Make an adapter. Returns its file when waiting, otherwise a `Run` whose result that becomes.

        `exemplars` are tuples (volumeNode, segmentationNode), with the slices behind them where not every slice with a
        label is complete ("all": every slice is known), and the array axis across the slices; None: those of the scene,
        `Logic.exemplars`. The adapter goes into the adapter folder as `name` (default: its structures and the time), or
        to the file `out`. An adaptation that broke off goes on from its checkpoint when it is asked for again, also
        after Slicer was started anew; see `interrupted`. `settings`:

        - recipe: {option: value} where it differs from the method's defaults; see `methods`
        - base: name or file of the base model ("auto": what suits the method)
        - warmStart: adapter to go on from, of the same structures
        - targets: unlabelled volumes, for methods that need them: nodes, files or folders
        - auxiliary: folders of other annotated data, for methods that need them
        - auxiliaryFolder, sourceFolder, targetFolder: the same as one folder each, which the worker looks into;
          sourceFolder holds the annotated images of an adaptation from one kind of image to another
        - seed, device ("auto", "cpu" or "cuda"), maxSeconds (then training stops and keeps the best)
        - window: lowest and highest value that the model shall see; default: by the kind of image
        """
        run = self._newRun(progress, onDone, onError, settings.get("maxSeconds"))
        with JobFiles.until(run) as files:
            wanted = AdaptSettings(exemplars, method, **settings)
            job = wanted.job(self.exemplars, self.adapterFolder, files, files.folder / "new.safetensors")
            job = replace(job, out=str(self._outOf(job, name, out)))
            self._taught += wanted.taught
            if out is None:  # beside any other file the checkpoint is found again by its name
                self._checkpoints.begin(job)

            def finish(record: dict[str, Any]) -> str:
                self._checkpoints.end(job)
                self.adapterFolder.noteNew(Path(job.out))
                return job.out

            run.start({"op": "job", "job": to_dict(job)}, finish, partial(self._checkpoints.fail, job))
        return self._started(run, waitForCompletion)

    def measure(
        self,
        exemplars: Sequence[tuple[Any, ...]] | None = None,
        method: str = "lora",
        *,
        onDone: Callback | None = None,
        onError: Callback | None = None,
        waitForCompletion: bool = False,
        **settings: Any,
    ) -> Any:
        """Train the first steps only, and tell what all of them will take (see FewShotSegLib.jobs.measure): a dict with
        seconds, seconds_per_step, memory_bytes, free_bytes, device and preset. Arguments as in `adapt`.
        """
        run = self._newRun(None, onDone, onError)
        self._rehearse(run, "measure", AdaptSettings(exemplars, method, **settings), lambda found: found)
        return self._started(run, waitForCompletion)

    def preview(
        self,
        exemplars: Sequence[tuple[Any, ...]] | None = None,
        method: str = "lora",
        *,
        count: int = 12,
        onDone: Callback | None = None,
        onError: Callback | None = None,
        waitForCompletion: bool = False,
        **settings: Any,
    ) -> Any:
        """Draw `count` samples of those the model would be trained on: the path of a PNG. Arguments as in `adapt`."""
        run = self._newRun(None, onDone, onError)

        def finish(answer: dict[str, Any]) -> str:
            self._sheets = self._sheets or JobFiles()
            return str(shutil.copy(answer["sheet"], self._sheets.unused("samples", ".png")))

        self._rehearse(run, "preview", AdaptSettings(exemplars, method, **settings), finish, count=count)
        return self._started(run, waitForCompletion)

    def _rehearse(self, run: Run, op: str, settings: AdaptSettings, finish: Callback, **request: Any) -> None:
        """Ask something about an adaptation without making it."""
        with JobFiles.until(run) as files:
            job = settings.job(self.exemplars, self.adapterFolder, files, files.folder / "new.safetensors")
            sheet = files.unused("sheet", ".png")
            run.start({"op": op, "job": to_dict(job), "sheet": str(sheet), **request}, finish)

    def _outOf(self, job: AdaptJob, name: str, out: str | Path | None) -> Path:
        if out is not None:
            return Path(out).expanduser().absolute()
        folder = self.adapterFolder.folder
        before = self._checkpoints.outOf(job, folder)
        if before is not None and name in ("", before.stem):
            return before
        structures = dict.fromkeys(name for files in job.exemplars for name in (files.structures or {}).values())
        made = f"{'-'.join(list(structures)[:4]) or job.method} {datetime.now():%Y-%m-%d %H.%M}"
        return self.adapterFolder.newPath(name or made, [one.out for one in self._checkpoints.interrupted(folder)])

    def interrupted(self) -> list[Interrupted]:
        """Return the adaptations that broke off, the newest first; with the same exemplars and settings, `adapt` goes
        on with them. Those older than a month are removed.
        """
        return self._checkpoints.interrupted(self.adapterFolder.folder)

    def describeFolder(self, path: str, holds: str, onDone: Callback, onError: Callback) -> None:
        """Ask what a folder holds, of `holds`: "data sets" or "volumes"; onDone(answer of the worker's "folder")."""
        request = {"op": "folder", "path": path, "holds": holds}
        self.workers.request("prompt", request, onResult=onDone, onError=onError)

    # ------------------------------------------------------------------------------------------------------- adapters

    def adapters(self) -> list[dict[str, Any]]:
        """Return the cards of all adapters, the newest first; see `AdapterFolder.cards`."""
        return self.adapterFolder.cards()

    def keep(self, adapter: AdapterLike, name: str = "") -> Path:
        """Keep a new adapter, under a name of its own if one is given; returns its file."""
        return self.adapterFolder.keep(adapter, name)

    def discard(self, adapter: AdapterLike) -> None:
        """Delete an adapter."""
        self.adapterFolder.discard(adapter)

    def rename(self, adapter: AdapterLike, name: str) -> Path:
        """Give an adapter another name and return its file."""
        return self.adapterFolder.rename(adapter, name)

    # ----------------------------------------------------------------------------------------------------- segmenting

    def segment(
        self,
        volumeNode: Any,
        adapter: AdapterLike | None = None,
        segmentationNode: Any = None,
        prompts: Any = None,
        base: str | None = None,
        *,
        support: Sequence[tuple[Any, ...]] | bool = False,
        progress: Callback | None = None,
        onDone: Callback | None = None,
        onError: Callback | None = None,
        waitForCompletion: bool = True,
        **options: Any,
    ) -> Any:
        """Segment a volume with an adapter, with prompts, or with both; or after exemplars, without training. Returns
        the segmentation node when waiting, otherwise a `Run` whose result that becomes.

        Without `segmentationNode` a new one is made. In a given one the segments of the same names are written anew,
        except on the slices that were learned from: what was drawn there stays. `prompts` are prompts of
        FewShotSegLib or entries of a prompt file, or True: those saved with the segments of `segmentationNode`.
        `support` are exemplars as in `adapt`, or True: those of the scene. An adapter beside them has no structures of
        its own, as method gmiseg makes it. `options`: axis (array axis to segment along), largestComponent,
        minIslandMl, allPieces (keep what lies apart of structures in one piece), smoothingMm (sigma of a Gaussian),
        device, seed, and with `support` window (lowest, highest intensity).
        """
        run = self._newRun(progress, onDone, onError)
        path = self.adapterFolder.find(adapter) if adapter is not None else None
        with JobFiles.until(run) as files:
            image = files.volume("", Volumes.volumeFromNode(volumeNode), volumeNode.GetName())
            if prompts is True:
                self.live.saveToScene()
            entries = promptEntries(prompts, segmentationNode)
            job = SegmentJob(
                images=(str(image),),
                out=str(files.folder / "segmented"),
                adapter=str(path) if path else None,
                prompts=str(files.prompts(entries)) if entries else None,
                base=base,
                support=self._supportFiles(support, files) if support else (),
                **segmentOptions(**options),
            )
            made = f"{volumeNode.GetName()} {path.stem if path else 'from exemplars' if support else 'segmentation'}"

            def finish(record: dict[str, Any]) -> Any:
                drawn, file = self._drawnIn(volumeNode, segmentationNode), Path(job.out) / f"{image.stem}.seg.nrrd"
                with self.whileBusy():
                    return Results.intoScene(file, volumeNode, segmentationNode, made, drawn)

            run.start({"op": "job", "job": to_dict(job)}, finish)
        return self._started(run, waitForCompletion)

    def _supportFiles(self, support: Sequence[tuple[Any, ...]] | bool, files: JobFiles) -> tuple[ExemplarFiles, ...]:
        shown = AdaptSettings(support if isinstance(support, Sequence) else None)
        written = shown.exemplarFiles(self.exemplars, files)
        self._taught += shown.taught
        return written

    def _drawnIn(self, volumeNode: Any, segmentationNode: Any) -> list[tuple[int, Sequence[int]]]:
        """The slices of a volume, by axis, whose labels in a segmentation are the user's own."""
        taught = [(one.axis, one.slices) for one in self._taught if one.nodes == (volumeNode, segmentationNode)]
        kept = [(axis, self.exemplars.slicesOf(volumeNode, axis)) for axis in range(3)]
        return [(axis, slices) for axis, slices in taught + kept if slices]

    def processBatch(
        self,
        volumes: Any,
        adapter: AdapterLike,
        outputDir: str | Path,
        *,
        processes: int = 1,
        channel: int | None = None,
        timeIndex: int | None = None,
        progress: Callback | None = None,
        onDone: Callback | None = None,
        onError: Callback | None = None,
        waitForCompletion: bool = True,
        **options: Any,
    ) -> Any:
        """Segment many volumes into a folder: files, a folder of them, volume nodes, or a sequence or sequence browser
        node. Returns the path of a table when waiting, otherwise a `Run` whose result that becomes.

        NAME.seg.nrrd is written for each volume, and volumes.csv with millilitres, confidence and quality flags of
        every structure. A volume that cannot be segmented is named in the table and does not stop the others; when
        none can be, that is an error. Repeated, only what is missing or has changed is done. `processes` volumes are
        segmented at the same time, each in a process of its own. `channel` and `timeIndex`, from 0, choose one volume
        of files that hold several, or of a folder with a file for each channel (CASE_0000, ...). `options` as in
        `segment`, `format`: "seg.nrrd", or for DICOM series "dicom-seg" (NAME.seg.dcm; needs the package highdicom) and
        "dicom-rtstruct" (NAME.rtstruct.dcm), and overwrite: results that a person has changed are replaced, too.
        """
        if processes < 1:
            raise InputError(f"At least one process is needed, got {processes}.")
        run = self._newRun(progress, onDone, onError)
        out, path = Path(outputDir).expanduser(), self.adapterFolder.find(adapter)
        with JobFiles.until(run) as files:
            names = volumeFiles(volumes, files, channel)
            chosen = {"channel": channel, "time_index": timeIndex, **segmentOptions(**options)}
            job = SegmentJob(tuple(names), str(out.absolute()), str(path), **chosen)
            fromScene = {file: name for file, name in names.items() if file != name}

            def finish(record: dict[str, Any]) -> str:
                return Results.tableOf(record, out.absolute(), fromScene)

            def explain(kind: str, message: str) -> str:
                return (
                    f"{message} Completed segmentations are kept: run it again to resume."
                    if kind == "dead"
                    else message
                )

            run.start({"op": "batch", "job": to_dict(job), "processes": processes}, finish, explain)
        return self._started(run, waitForCompletion)

    # -------------------------------------------------------------------------------------------- comparing, suggesting

    def compare(
        self,
        volumeNode: Any,
        axis: int,
        index: int,
        adapter: AdapterLike,
        prompt: Any = None,
        onDone: Callable[[Comparison], Any] | None = None,
        onError: Callback | None = None,
        *,
        structure: str | None = None,
        device: str = "auto",
    ) -> Comparison | None:
        """Ask base model and adapter for the mask of the same prompt on a slice. Returns a `Comparison`, or with
        `onDone` hands it over when it is there.

        `prompt` is one of the panel (`SlicePrompt`) or of the library, or an entry of a prompt file; None asks the
        adapter for the `structure` by its name (default: the first it has learned).
        """
        card = self.adapterFolder.card(adapter)
        learned = list(card["structures"].values())
        entry = entryOf(prompt, axis, index, structure or (learned[0] if prompt is None and learned else None))
        Dependencies.requireInstalled()
        found: list[Comparison] = []
        failures: list[tuple[str, str]] = []

        def fail(kind: str, message: str) -> None:
            failures.append((kind, message))

        comparing = Comparing(self.workers, volumeNode, axis, index, onDone or found.append, onError or fail)
        comparing.start(self._volumeOfPrompts(volumeNode), entry, card, device)
        if onDone is not None:
            return None
        while not found and not failures:
            self._turn()
        if failures:
            kind, message = failures[0]
            raise InputError(message) if kind == "input" else RuntimeError(message)
        return found[0]

    def _volumeOfPrompts(self, volumeNode: Any) -> str:
        """The name under which the prompt worker knows a volume; it is sent where it is not the one clicked on."""
        target = self.live.target
        if target is not None and target.volumeNode is volumeNode:
            return target.volumeName()
        if self._compared is None or self._compared.volumeNode is not volumeNode:
            if self._compared is not None:
                self._compared.forgetVolume()
            self._compared = Target(self.workers, volumeNode, None, None)
        return self._compared.volumeName()

    def suggestNextSlice(
        self,
        volumeNode: Any,
        adapter: AdapterLike,
        *,
        axis: int | None = None,
        progress: Callback | None = None,
        onDone: Callback | None = None,
        onError: Callback | None = None,
        waitForCompletion: bool | None = None,
        **options: Any,
    ) -> Any:
        """Find the slice to annotate next, where the adapter is least sure: (axis, index) when waiting, which it does
        unless `onDone` is given; otherwise a `Run`. Slices that were learned from, and their neighbours, are left out.
        """
        run = self._newRun(progress, onDone, onError)
        card, volume = self.adapterFolder.card(adapter), Volumes.volumeFromNode(volumeNode)
        if axis is None:
            axis = card["axis"] if volume.acquisition_axis == 0 else volume.acquisition_axis
        taught = [one for one in self._taught if one.nodes[0] is volumeNode and one.axis == axis]
        known = {index for one in taught for index in one.slices}
        known.update(self.exemplars.slicesOf(volumeNode, axis))
        name = f"suggest {volumeNode.GetID()}"
        self.workers.sendVolume(name, volume.array, volume.affine, worker="job")
        run.atEnd(lambda: self.workers.forgetVolume(name, worker="job"))
        request = {"op": "suggest", "volume": name, "adapter": card["path"], "axis": AXIS_LETTERS[axis], **options}
        run.start({**request, "known": sorted(known)}, lambda found: (axis, found["index"]))
        return self._started(run, onDone is None if waitForCompletion is None else waitForCompletion)

    # ----------------------------------------------------------------------------------------------------------- runs

    @property
    def runs(self) -> tuple[Run, ...]:
        """What the job worker has to do, the current one first."""
        return tuple(run for run in self._runs if run.isRunning)

    def cancel(self) -> None:
        """Give up all that the job worker has to do."""
        for run in self.runs:
            run.cancel()

    def stopAndKeepBest(self) -> None:
        """End the training that runs, with the best state so far."""
        if not self.runs:
            raise InputError("No training is running.")
        self.runs[0].stopAndKeepBest()

    def _newRun(
        self,
        progress: Callback | None,
        onDone: Callback | None,
        onError: Callback | None,
        maxSeconds: float | None = None,
    ) -> Run:
        Dependencies.requireInstalled()
        return Run(self.workers, progress=progress, onDone=onDone, onError=onError, maxSeconds=maxSeconds)

    def _started(self, run: Run, waitForCompletion: bool) -> Any:
        self._runs.append(run)
        if not waitForCompletion:
            return run
        try:
            while run.isRunning:
                self._turn()
        except BaseException:  # a keyboard interrupt: nobody waits for it any more
            run.cancel()
            raise
        return run.valueOrError()

    def _turn(self) -> None:
        self.poll()
        slicer.app.processEvents()
        time.sleep(_TURN_S)
