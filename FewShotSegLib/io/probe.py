"""Trial reading of a file in a subprocess, as a corrupt file may crash the process that reads it.

Headers of NRRD, MetaImage and NIfTI are checked before ITK reads them. DICOM and 2-D image files are decoded by
libraries that have crashed on corrupt files before; in a batch of images that would cost the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from FewShotSegLib.errors import InputError

from .images import kind_of

_READ = (
    "import sys; sys.path[:] = [path for path in sys.path if path]; from pathlib import Path; "
    "from FewShotSegLib.errors import InputError; from FewShotSegLib.io.images import read_volume\n"
    "try:\n    read_volume(Path(sys.argv[1]), None, 0, sys.argv[1])\nexcept InputError:\n    pass\n"
)
_PACKAGE = Path(__file__).resolve().parents[2]  # contains the package, which may not be installed in this Python


def check_reading(path: str | os.PathLike[str], *, code: str = _READ) -> None:
    """Raise `InputError` if reading a DICOM or 2-D image file crashes the process that reads it.

    Other errors are left to the actual reading. `code` is what the subprocess runs, for tests.
    """
    if kind_of(Path(path), str(path)) == "volume":
        return
    paths = [str(_PACKAGE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, os.fspath(path)], env=environment, capture_output=True, check=False
    )
    if done.returncode < 0 or done.returncode >= 128:
        raise InputError(f"{path} cannot be read: it ends the program that reads it. It is damaged; copy it again.")
