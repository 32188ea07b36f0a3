"""The Python packages that FewShotSeg adds to Slicer: which are missing, how large they are, and installing them.

A package counts as installed when its metadata says so. Nothing is imported to find out, so the answer is the same in
a Slicer that has just started. Only the worker processes import what is installed here: end them afterwards
(`Workers.close`), and Slicer need not be restarted.

Nothing is installed before the user has agreed, and what is there already keeps its version.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from FewShotSegLib.errors import InputError
from FewShotSegLib.worker import scratch

if TYPE_CHECKING:
    from packaging.requirements import Requirement

REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"

# Other modules rely on these. pip may add them when they are missing, but not exchange them.
_KEPT = ("numpy", "scipy", "SimpleITK", "torch", "torchvision", "torchaudio")
_DOWNLOAD = {  # with what they need in turn
    "torch": "200 MB, with support for NVIDIA graphics cards 3 GB",
    "monai": "2 MB",
    "einops": "1 MB",
    "segment-anything": "1 MB",
    "safetensors": "1 MB",
    "matplotlib": "25 MB",
}
_DISK_GB, _DISK_GB_WITH_TORCH = 0.3, 2.0  # at least
_ASKED_FOR = "safetensors"  # a small one, to see whether pip reaches its index
_TIMEOUT_S = 10
log = logging.getLogger(__name__)


def missing() -> tuple[str, ...]:
    """Return the requirements that are not met, as pip takes them: ("torch>=2.4", ...). Takes milliseconds."""
    return tuple(str(requirement) for requirement in _unmet())


def summary() -> str:
    """Return what is missing, how large it is and where it goes, or where everything is, for people to read."""
    unmet = _unmet()
    if not unmet:
        return _("All Python packages are installed in {folder}.").format(folder=_folder())
    packages = "\n".join(f"- {requirement} ({_DOWNLOAD[requirement.name]})" for requirement in unmet)
    return _(
        "FewShotSeg computes with Python packages that are not installed yet:\n{packages}\n"
        "They are downloaded from the Python package index and go into {folder}, where {free:.0f} GB are free."
    ).format(packages=packages, folder=_folder(), free=_freeGb())


def requireInstalled() -> None:
    """Raise InputError when a package is missing; called where the packages are about to be used."""
    names = missing()
    if names:
        raise InputError(
            _("Python packages are missing ({names}): press Install in the module FewShotSeg.").format(
                names=", ".join(names)
            )
        )


def install() -> bool:
    """Ask the user and install what is missing; returns whether everything is there, False when the user declined.

    Blocks, with Slicer's progress dialog where there is one. InputError says in a sentence why it did not work; what
    was installed until then stays, and the next call goes on from there.
    """
    unmet = _unmet()
    if not unmet:
        return True
    _refuseToReplace(unmet)
    if not slicer.util.confirmOkCancelDisplay(_question(unmet), _("FewShotSeg - Install Python packages")):
        return False
    _requirePlace(unmet)
    with slicer.util.WaitCursor():
        _requireIndex()
        try:
            _installWithPyTorchExtension(unmet)
            _installWithPip(_unmet())
        except subprocess.CalledProcessError as error:
            log.warning("Installing Python packages failed", exc_info=error)
    left = missing()
    if left:
        raise InputError(
            _(
                "These packages could not be installed: {names}. The Python console shows what pip said; "
                "press Install again to go on."
            ).format(names=", ".join(left))
        )
    return True


# ------------------------------------------------------------------------------------------------- what there is


def _unmet() -> list[Requirement]:
    importlib.invalidate_caches()  # pip works in another process
    return [requirement for requirement in _requirements() if not _isMet(requirement)]


def _requirements() -> list[Requirement]:
    from packaging.requirements import Requirement  # comes with Slicer

    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _isMet(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _folder() -> Path:
    return Path(sysconfig.get_path("purelib"))


def _freeGb() -> float:
    return shutil.disk_usage(_folder()).free / 1e9


# --------------------------------------------------------------------------------------------------- before pip


def _refuseToReplace(unmet: list[Requirement]) -> None:
    for requirement in unmet:
        version = _version(requirement.name)
        if requirement.name in _KEPT and version is not None:
            raise InputError(
                _(
                    "{name} {version} is installed, and FewShotSeg needs {requirement}: uninstall it in the module "
                    "PyTorch Utils, restart Slicer, and press Install again."
                ).format(name=requirement.name, version=version, requirement=requirement)
            )


def _question(unmet: list[Requirement]) -> str:
    parts = [summary(), _("What is installed already keeps its version. No image leaves this computer.")]
    if _torchOf(unmet) and _torchLogic() is None:
        parts.append(
            _(
                "The extension PyTorch, which chooses the build that fits your graphics card, is not installed, so "
                "torch comes as pip finds it. To have it chosen, press Cancel, install that extension in the "
                "Extensions Manager and restart Slicer."
            )
        )
    return "\n\n".join([*parts, _("Install now?")])


def _requirePlace(unmet: list[Requirement]) -> None:
    folder, free = _folder(), _freeGb()
    needed = _DISK_GB_WITH_TORCH if _torchOf(unmet) else _DISK_GB
    if free < needed:
        raise InputError(
            _(
                "Only {free:.1f} GB are free in {folder}, and {needed:.1f} GB are needed: make room and try again."
            ).format(free=free, folder=folder, needed=needed)
        )
    if not os.access(folder, os.W_OK):
        raise InputError(
            _(
                "You may not write to {folder}, where Slicer keeps its Python packages: start Slicer once as an "
                "administrator and install there, or install Slicer in a folder of your own."
            ).format(folder=folder)
        )


def _requireIndex() -> None:
    """Ask pip itself, so that its proxies and mirrors count; left to itself it would try for minutes."""
    python = shutil.which("PythonSlicer") or sys.executable
    options = ["--dry-run", "--no-deps", "--ignore-installed", "--retries", "0", "--timeout", str(_TIMEOUT_S)]
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", *options, _ASKED_FOR]
    process = slicer.util.launchConsoleProcess(command, useStartupEnvironment=False)
    try:
        output, _errors = process.communicate(timeout=3 * _TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _errors = process.communicate()
    if process.returncode != 0:
        log.warning("pip finds no package index:\n%s", output)
        raise InputError(
            _(
                "The Python package index cannot be reached: connect this computer to the internet, or tell pip about "
                "your proxy or mirror, and press Install again."
            )
        )


# --------------------------------------------------------------------------------------------------------- with pip


def _installWithPyTorchExtension(unmet: list[Requirement]) -> None:
    """Leave torch to the extension made for it, if that is there."""
    torch, logic = _torchOf(unmet), _torchLogic()
    if torch is None or logic is None:
        return
    with _keepingVersions():
        logic.installTorch(askConfirmation=False, torchVersionRequirement=str(torch.specifier))
    if _torchOf(_unmet()):
        raise InputError(
            _(
                "The extension PyTorch did not install {torch}: its module PyTorch Utils offers other builds; choose "
                "one there, and press Install again."
            ).format(torch=torch)
        )


def _torchOf(unmet: list[Requirement]) -> Requirement | None:
    return next((requirement for requirement in unmet if requirement.name == "torch"), None)


def _torchLogic() -> Any:
    try:
        import PyTorchUtils
    except ImportError:
        return None
    return PyTorchUtils.PyTorchUtilsLogic()


def _installWithPip(unmet: list[Requirement]) -> None:
    if not unmet:
        return
    names = [str(requirement) for requirement in unmet]
    with _keepingVersions():
        try:
            from slicer.packaging import pip_ensure
        except ImportError:  # before Slicer 5.12
            slicer.util.showStatusMessage(_("Installing {names}...").format(names=", ".join(names)))
            slicer.util.pip_install(names)
        else:
            pip_ensure(names, requester="FewShotSeg", prompt_install=False)  # asked already, saying more


@contextlib.contextmanager
def _keepingVersions() -> Iterator[None]:
    """Let every pip that is started meanwhile keep the versions that are there, or fail.

    By the environment, for the extension PyTorch starts pip itself; as a URL, for pip splits the variable at spaces.
    """
    present = {name: version for name in _KEPT if (version := _version(name)) is not None}
    before = os.environ.get("PIP_CONSTRAINT")
    with tempfile.TemporaryDirectory(dir=scratch.process_folder()) as folder:
        file = Path(folder) / "keep.txt"
        file.write_text("".join(f"{name}=={version}\n" for name, version in present.items()), encoding="utf-8")
        os.environ["PIP_CONSTRAINT"] = " ".join(filter(None, [before, file.as_uri()]))
        try:
            yield
        finally:
            del os.environ["PIP_CONSTRAINT"]
            if before is not None:
                os.environ["PIP_CONSTRAINT"] = before
