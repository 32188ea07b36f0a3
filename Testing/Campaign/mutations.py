"""Files of every kind, changed at random: read as they are, or refused in one sentence; never another image, never a
crash of the process."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from .scene import ROOT, Count, Scene

# Reads many files in a process of its own, which ends with the first that crashes it; a line for each.
READER = """
import json, os, sys, time, logging
answers = os.fdopen(os.dup(1), "w")  # what libraries print goes nowhere
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
from pathlib import Path
import numpy as np
from FewShotSegLib.data.digests import sha256_of_array
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.io.jobs import load_job
from FewShotSegLib.io.volumes import load_labelmap, load_volume
logging.disable(logging.CRITICAL)
LOADERS = {"volume": lambda p: sha256_of_array(load_volume(p).array),
           "labelmap": lambda p: sha256_of_array(load_labelmap(p).volume.array),
           "adapter": lambda p: load_adapter(p).digest, "job": lambda p: str(load_job(p))}
for line in sys.stdin:
    kind, path = json.loads(line)
    started = time.monotonic()
    try:
        answer = ["read", LOADERS[kind](Path(path))]
    except InputError as error:
        answer = ["refused", str(error)]
    except BaseException as error:
        answer = ["defect", type(error).__name__ + ": " + str(error)]
    answers.write(json.dumps([*answer, time.monotonic() - started]) + chr(10))
    answers.flush()
"""


def mutated_files(scene: Scene, count: int, rng: random.Random) -> list[Count]:
    """A row for each kind of file."""
    rows = []
    originals = _originals(scene)
    for name, (kind, content, exact) in originals.items():
        row = Count(f"changed {name}")
        reader = _Reader()
        suffix = name.split(" ")[-1]
        whole = _asked(reader, kind, scene.folder / f"whole{suffix}", content)
        for number in range(count // len(originals)):
            path = scene.folder / f"changed{number}{suffix}"
            answer = _asked(reader, kind, path, _changed(content, rng))
            path.unlink()
            row.note(*_judged(answer, whole, exact))
        reader.close()
        rows.append(row)
    return rows


def _originals(scene: Scene) -> dict[str, tuple[str, bytes, bool]]:
    """{name: (what reads it, content, whether checksums let no change of voxels through)}."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(scene.cases[0][0]))
    found: dict[str, tuple[str, bytes, bool]] = {}
    for suffix, compress in ((".nrrd", True), (".nrrd", False), (".mha", True), (".mha", False), (".nii.gz", True)):
        path = scene.folder / f"original{suffix}"
        sitk.WriteImage(image, str(path), useCompression=compress)
        found[f"{'packed' if compress else 'plain'} {suffix}"] = ("volume", path.read_bytes(), compress)
    plane = sitk.Cast(sitk.RescaleIntensity(image[:, :, 2]), sitk.sitkUInt8)
    for suffix in (".png", ".jpg", ".tif", ".bmp"):
        path = scene.folder / f"original{suffix}"
        sitk.WriteImage(plane, str(path))
        found[f"picture {suffix}"] = ("volume", path.read_bytes(), suffix == ".png")
    path = scene.folder / "original.dcm"
    sitk.WriteImage(image[:, :, 2:3], str(path))
    found["DICOM .dcm"] = ("volume", path.read_bytes(), False)
    found["segmentation .seg.nrrd"] = ("labelmap", scene.cases[0][1].read_bytes(), True)
    found["adapter .safetensors"] = ("adapter", scene.adapter.read_bytes(), True)
    job = json.dumps(scene.adapt_job("lora", scene.folder / "x.safetensors")).encode()
    found["job .json"] = ("job", job, False)
    return found


def _changed(content: bytes, rng: random.Random) -> bytes:
    """A flipped bit, a changed byte near the beginning, a piece cut out, an end cut off, zeros, or a piece twice."""
    data = bytearray(content)
    at = rng.randrange(len(data))
    early = rng.randrange(min(len(data), 600))
    action = rng.randrange(7)
    if action == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif action == 1:
        data[early] = rng.randrange(256)
    elif action == 2:
        del data[at : at + rng.randrange(1, 50)]
    elif action == 3:
        del data[at:]
    elif action == 4:
        data[at:] = bytes(len(data) - at)
    elif action == 5:
        data[early:early] = data[early : early + 20]
    else:
        data[early : early + 4] = rng.randbytes(4)
    return bytes(data)


class _Reader:
    """The reading process, started again when a file has ended it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, kind: str, path: Path) -> list[object]:
        if self.process is None or self.process.poll() is not None:
            options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen([sys.executable, "-c", READER], cwd=ROOT, text=True, **options)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([kind, str(path)]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return json.loads(line) if line else ["crash", f"exit {self.process.wait()}", 0.0]

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()


def _asked(reader: _Reader, kind: str, path: Path, content: bytes) -> list[object]:
    path.write_bytes(content)
    return reader.ask(kind, path)


def _judged(answer: list[object], whole: list[object], exact: bool) -> tuple[bool, str]:
    what, text, seconds = answer
    if what == "read":
        return not exact or text == whole[1], "read as something else"
    if what == "refused":
        return "\n" not in str(text) and float(str(seconds)) < 20.0, str(text)
    return False, f"{what}: {text}"
