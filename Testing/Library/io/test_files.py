"""Files are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.io.files import part_path, sha256_of_file, write_text_whole, written_whole


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("a.seg.nrrd", "a.part.seg.nrrd"),
        ("a.nii.gz", "a.part.nii.gz"),
        ("patient 1.2.3.nrrd", "patient 1.2.3.part.nrrd"),
        ("Läsion.NII.GZ", "Läsion.part.NII.GZ"),
        ("adapter.safetensors", "adapter.part.safetensors"),
        ("no_suffix", "no_suffix.part"),
    ],
)
def test_the_part_file_keeps_the_suffix_that_tells_the_format(name, part):
    assert part_path(Path("folder") / name) == Path("folder") / part


def test_the_file_appears_only_after_the_block(tmp_path):
    path = tmp_path / "new folder" / "übung 1.json"
    with written_whole(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert files_in(tmp_path) == ["übung 1.json"]


@pytest.mark.parametrize("exception", [ValueError("our bug"), Cancelled(), KeyboardInterrupt()])
def test_an_exception_keeps_the_old_file_and_leaves_no_part(tmp_path, exception):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail_half_way():
        with written_whole(path) as part:
            part.write_text("ne")
            raise exception

    with pytest.raises(type(exception)):
        fail_half_way()
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["a.txt"]


def test_a_disk_that_fills_up_at_the_last_moment_keeps_the_old_file(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=re.escape(str(path)) + ".*No space left on device"):
        write_text_whole(path, "new")
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["a.txt"]


def test_a_read_only_file_system_is_named_with_the_reason(tmp_path, monkeypatch):
    def read_only(_part, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(InputError, match="Read-only file system"):
        write_text_whole(tmp_path / "a.txt", "new")
    assert files_in(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="a full device that can be opened like a file is a POSIX thing")
def test_a_device_that_is_really_full_is_reported(tmp_path):
    path = tmp_path / "a.txt"
    part_path(path).symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left on device"):
        write_text_whole(path, "new")
    assert not path.exists()


def test_a_folder_that_cannot_be_made_is_reported_even_to_root(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    path = tmp_path / "file" / "below" / "a.txt"
    with pytest.raises(InputError, match=re.escape(str(path))):
        write_text_whole(path, "new")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where not even root may write")
def test_a_folder_that_takes_no_files_is_reported_even_to_root():
    with pytest.raises(InputError, match=r"Cannot write /proc/self/a\.txt: .*Choose a folder"):
        write_text_whole("/proc/self/a.txt", "new")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_reported(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="Permission denied"):
        write_text_whole(tmp_path / "a.txt", "new")


def test_an_error_about_another_file_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError, match="input"), written_whole(tmp_path / "a.txt"):
        (tmp_path / "input").read_bytes()
    assert files_in(tmp_path) == []


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys; from FewShotSegLib.io.files import written_whole\n"
        "with written_whole(sys.argv[1]) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))"
    )
    process = subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[3], check=False)
    assert process.returncode != 0
    assert path.read_text() == "old"


def test_text_is_utf8_with_unix_line_ends(tmp_path):
    write_text_whole(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"


def test_the_checksum_of_a_file_is_sha256(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match="missing"):
        sha256_of_file(tmp_path / "missing")
