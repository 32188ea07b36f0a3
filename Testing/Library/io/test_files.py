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
from FewShotSegLib.io.files import check_writable, known_suffix, sha256_of_file, write_text_whole, written_whole


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["a.seg.nrrd", "a.nii.gz", "patient 1.2.3.nrrd", "Läsion.NII.GZ", "no_suffix"])
def test_the_part_file_keeps_the_suffix_that_tells_the_format_and_is_hidden(name, tmp_path):
    with written_whole(tmp_path / name) as part:
        part.write_text("whole")
        assert part.name.startswith(".")
        assert known_suffix(part) == (known_suffix(Path(name)) or ".part")
        assert part.parent == tmp_path


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


@pytest.mark.skipif(sys.platform == "win32", reason="files of limited size are a POSIX thing")
def test_a_disk_that_is_really_full_is_reported_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import resource, sys; from FewShotSegLib.io.files import write_text_whole\n"
        "from FewShotSegLib.errors import InputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_text_whole(sys.argv[1], 'x' * 5000)\n"
        "except InputError as error:\n    sys.stdout.write(str(error))"
    )
    root = Path(__file__).parents[3]
    said = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True, check=True)
    assert re.fullmatch(rf"Cannot write {re.escape(str(path))}: File too large\..*free space\.", said.stdout)
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["a.txt"]


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
    (left,) = [name for name in files_in(tmp_path) if name != "a.txt"]
    (tmp_path / "other").mkdir()
    (tmp_path / left).rename(tmp_path / "other" / left)
    with written_whole(tmp_path / "other" / "b.txt") as part:  # the first writing there recognizes what was left
        part.write_text("new")
        assert files_in(tmp_path / "other") == [part.name]
    assert files_in(tmp_path / "other") == ["b.txt"]


def test_of_two_writers_of_one_file_the_last_one_wins_whole(tmp_path):
    path = tmp_path / "a.bin"
    with written_whole(path) as first, first.open("wb") as slow:
        slow.write(b"A" * 50)
        slow.flush()
        with written_whole(path) as second:
            second.write_bytes(b"B" * 100)
        assert path.read_bytes() == b"B" * 100
        slow.write(b"A" * 50)
    assert path.read_bytes() == b"A" * 100
    assert files_in(tmp_path) == ["a.bin"]


def test_a_part_file_that_somebody_works_on_is_not_taken_for_abandoned(tmp_path):
    code = "import sys; from FewShotSegLib.io.files import write_text_whole\nwrite_text_whole(sys.argv[1], 'theirs')"
    with written_whole(tmp_path / "a.txt") as part:
        part.write_text("ours")
        root = Path(__file__).parents[3]
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "b.txt")], cwd=root, check=True)
        assert part.read_text() == "ours"
    assert (tmp_path / "a.txt").read_text() == "ours"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_private_file_can_be_read_by_this_user_only(tmp_path):
    with written_whole(tmp_path / "a.txt", private=True) as part:
        part.write_text("mine")
        assert part.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.txt").symlink_to(tmp_path / "victim")
    write_text_whole(tmp_path / "a.txt", "new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "a.txt").is_symlink()


def test_trying_whether_a_file_can_be_written_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "new" / "a.nrrd")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_in_the_place_of_an_output_is_refused(tmp_path):
    (tmp_path / "a.nrrd").mkdir()
    with pytest.raises(InputError, match=r"Cannot write .*a\.nrrd: it is a folder"):
        check_writable(tmp_path / "a.nrrd")


def test_a_name_that_is_too_long_is_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match="File name too long"):
        check_writable(tmp_path / ("n" * 300))


def test_text_is_utf8_with_unix_line_ends(tmp_path):
    write_text_whole(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"


def test_the_checksum_of_a_file_is_sha256(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match="missing"):
        sha256_of_file(tmp_path / "missing")
