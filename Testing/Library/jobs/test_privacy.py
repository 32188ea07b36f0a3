"""An adapter is made to be passed on: it says how it was made, and not from whose images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.jobs.privacy import without_names
from FewShotSegLib.jobs.run import run
from Testing.conftest import write_discs

NAME = "MUELLER_HANS_19500102"


def test_an_adapter_holds_no_file_names_unless_asked(an_adapt_job: AdaptJob, tmp_path: Path) -> None:
    image, labelmap = write_discs(tmp_path / NAME, NAME, 0)
    files = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
    job = replace(an_adapt_job, exemplars=(files,), recipe={**an_adapt_job.recipe, "guard": "warn"})
    run(job)
    content = Path(job.out).read_bytes()
    assert NAME.encode() not in content
    assert str(tmp_path).encode() not in content
    assert load_adapter(job.out).provenance["exemplars"][0]["name"] == "exemplar 1"
    kept = replace(job, keep_names=True, out=str(tmp_path / "kept.safetensors"))
    run(kept)
    assert load_adapter(kept.out).provenance["exemplars"][0]["name"] == f"{NAME}.nrrd"


def test_names_are_replaced_wherever_they_stand_and_nothing_else() -> None:
    adapter = Adapter(
        {"w": np.zeros(1, np.float32)},
        method="uda",
        recipe={"weights": "/home/x/nets/start.pt", "preset": "cpu"},
        base_model="b",
        base_sha256="0" * 64,
        structures={1: "liver"},
        intensity=IntensitySpec("minmax", 0, 1),
        image_size=64,
        seed=0,
        axis=0,
        provenance={"exemplars": [{"name": "case 7.nii.gz"}, {"name": "a.nrrd"}]},
        metrics={"cases": {"Meier": 0.9, "case 7": 0.5}, "notes": ["Meier.nrrd: a shadow, Meiers not", "a"]},
    )
    job = AdaptJob(
        "o.safetensors", exemplars=(ExemplarFiles("/d/case 7.nii.gz", "/d/lab.nrrd"),), targets=("Meier.nrrd",)
    )
    found = without_names(adapter, job)
    assert found.recipe == {"weights": "start.pt", "preset": "cpu"}
    assert [one["name"] for one in found.provenance["exemplars"]] == ["exemplar 1", "exemplar 2"]
    assert found.metrics["cases"] == {"image 3": 0.9, "exemplar 1": 0.5}
    assert found.metrics["notes"] == ["image 3: a shadow, Meiers not", "exemplar 2"]
