"""What a job names is loaded, or refused before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles, SegmentJob
from FewShotSegLib.errors import InputError
from FewShotSegLib.jobs.run import run
from Testing.Library.jobs.conftest import files_in

# ---------------------------------------------------------------------------------------------------------------- adapt


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "magic"}, "Unknown method 'magic'"),
        ({"base": "vit_z"}, "No base model or file is called vit_z"),
        ({"recipe": {"stpes": 3}}, 'Unknown recipe option "stpes"; did you mean "steps"'),
        ({"recipe": {"rank": 0}}, '"rank" must be between'),
        ({"exemplars": ()}, "At least one exemplar"),
        ({"exemplars": (ExemplarFiles("no.nrrd", "no.seg.nrrd"),)}, r"no\.nrrd"),
    ],
)
def test_bad_input_is_refused_before_any_work(changes: dict[str, Any], sentence: str, an_adapt_job: AdaptJob) -> None:
    with pytest.raises(InputError, match=sentence):
        run(replace(an_adapt_job, **changes))
    assert files_in(Path(an_adapt_job.out).parent) == set()


# -------------------------------------------------------------------------------------------------------------- segment


def test_two_images_that_would_be_written_as_one_are_refused(a_segment_job: SegmentJob, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"both be written as p1\.seg\.nrrd"):
        run(replace(a_segment_job, images=(a_segment_job.images[0], str(tmp_path / "other" / "p1.nii.gz"))))
