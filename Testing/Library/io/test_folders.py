"""What a folder holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.folders import images_in


def touch(folder: Path, *names: str, content: bytes = b"") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names_of(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


def test_volumes_are_found_by_name_and_what_segment_writes_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a.nrrd", "c.MHA", "a.seg.nrrd", "a.liver.probability.nrrd", "volumes.csv", ".a.nrrd")
    touch(tmp_path, "notes/readme.txt")
    assert names_of(images_in(tmp_path)) == ["a.nrrd", "b.nii.gz", "c.MHA"]


def test_folders_of_dicom_files_are_volumes(tmp_path: Path) -> None:
    touch(tmp_path, "patient 1/001.dcm", "patient 2/scans/readme.txt")
    touch(tmp_path, "patient 3/IM0001", content=bytes(128) + b"DICM")
    assert names_of(images_in(tmp_path)) == ["patient 1", "patient 3"]
    assert images_in(tmp_path / "patient 1") == [str(tmp_path / "patient 1")]


def test_a_folder_without_volumes_or_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no volume"):
        images_in(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        images_in(tmp_path / "nowhere")


def test_of_files_that_are_numbered_by_channel_one_is_chosen(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{case}_{number:04d}.nii.gz" for case in ("p1", "p2") for number in range(3)))
    with pytest.raises(InputError, match=r"the channels 0, 1, 2 of each image \(p1_0000\.nii\.gz, p1_0001\.nii\.gz, "):
        images_in(tmp_path)
    with pytest.raises(InputError, match=r"choose one .*, got 3"):
        images_in(tmp_path, 3)
    assert names_of(images_in(tmp_path, 1)) == ["p1_0001.nii.gz", "p2_0001.nii.gz"]


@pytest.mark.parametrize(
    "names",
    [
        ("case_0001.nrrd", "case_0002.nrrd"),
        ("case_0000.nrrd", "case_0001.nrrd"),
        ("a_0000.nrrd", "b_0000.nrrd"),
        ("a_0000.nrrd", "a_0001.nrrd", "b.nrrd"),
        ("a_0003.nrrd", "a_0004.nrrd", "b_0003.nrrd", "b_0004.nrrd"),
    ],
)
def test_cases_may_be_numbered_with_four_digits_themselves(tmp_path: Path, names: tuple[str, ...]) -> None:
    touch(tmp_path, *names)
    assert names_of(images_in(tmp_path)) == names_of(images_in(tmp_path, 1)) == sorted(names)
