"""The Python packages that FewShotSeg adds to Slicer: which are missing, how large they are, what installs them.

A package counts as installed when its metadata says so. Nothing is imported to find out, so the answer is the same in
a Slicer that has just started. Only the worker processes import what `Installation` installs, never Slicer itself: end
them afterwards (`Workers.close`), and Slicer need not be restarted.

Nothing is installed before the user has agreed, and what is there already keeps its version.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import slicer
from slicer.i18n import tr as _

from FewShotSegLib.errors import InputError

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
    "pydicom": "3 MB",
}
_DISK_GB, _DISK_GB_WITH_TORCH = 0.3, 2.0  # at least
_TORCH_CHOOSER = "light-the-torch>=0.5"
# Few retries: without a network the user should know within seconds.
_PIP_OPTIONS = ("--disable-pip-version-check", "--no-input", "--retries", "2", "--timeout", "15")


def missing() -> tuple[str, ...]:
    """Return the requirements that are not met, as pip takes them: ("torch>=2.4", ...). Takes milliseconds."""
    return tuple(str(requirement) for requirement in _unmet())


def summary() -> str:
    """Return what is missing, how large it is and where it goes, or where everything is, for people to read."""
    unmet = _unmet()
    if not unmet:
        return _("All Python packages are installed in {folder}.").format(folder=folder())
    if why := obstacle():
        return why
    packages = "\n".join(f"- {requirement} ({_DOWNLOAD[requirement.name]})" for requirement in unmet)
    return _(
        "FewShotSeg computes with Python packages that are not installed yet:\n{packages}\n"
        "They are downloaded from the Python package index and go into {folder}, where {free:.0f} GB are free."
    ).format(packages=packages, folder=folder(), free=_freeGb())


def requireInstalled() -> None:
    """Raise InputError when a package is missing; called where the packages are about to be used."""
    names = missing()
    if names:
        raise InputError(
            _("Python packages are missing ({names}): press Install in the module FewShotSeg.").format(
                names=", ".join(names)
            )
        )


def permission() -> bool:
    """Ask the user whether what is missing may be installed; `InputError` says in a sentence why it cannot be."""
    unmet = _unmet()
    if why := obstacle():
        raise InputError(why)
    _refuseToReplace(unmet)
    if not slicer.util.confirmOkCancelDisplay(_question(unmet), _("FewShotSeg - Install Python packages")):
        return False
    _requirePlace(unmet)
    return True


def obstacle() -> str:
    """Return why what is missing cannot be installed in this Slicer at all, "" where it can."""
    isIntelMac = sys.platform == "darwin" and platform.machine() == "x86_64"  # so is Slicer on Apple's own processors
    torch = _torchOf(_unmet()) if isIntelMac else None
    if torch is None:
        return ""
    return _(
        "This Slicer is made for Macs with Intel processors, and {torch} is not: nothing can be computed in it. Masks "
        "can be shown and corrected here, and adapting and segmenting work on the command line (fewshotseg) with a "
        "Python for Apple silicon; its results open in this Slicer. A Slicer for Apple silicon has no such limit."
    ).format(torch=torch)


def commands(python: str) -> list[list[str]]:
    """Return the commands that install what is missing, one after the other. None of them runs in Slicer itself.

    Where the extension PyTorch is installed, torch is chosen by light-the-torch, as that extension does it: the build
    that fits the graphics card.
    """
    unmet, pip = _unmet(), [python, "-m", "pip", "install", *_PIP_OPTIONS]
    torch = _torchOf(unmet)
    others = [str(requirement) for requirement in unmet if requirement is not torch]
    if torch is None:
        return [[*pip, *others]]
    if not hasTorchExtension():
        return [[*pip, str(torch), *others]]
    chosen = [python, "-m", "light_the_torch", "install", *_PIP_OPTIONS, str(torch)]
    return [[*pip, _TORCH_CHOOSER], chosen, *([[*pip, *others]] if others else [])]


def kept() -> str:
    """Return constraints for pip, a line each: the versions that other modules rely on, as they are now."""
    present = {name: version for name in _KEPT if (version := _version(name)) is not None}
    return "".join(f"{name}=={version}\n" for name, version in present.items())


def hasTorchExtension() -> bool:
    """Whether the extension PyTorch is there; found out without importing it, for it imports torch."""
    return hasattr(slicer.modules, "pytorchutils")


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


def folder() -> Path:
    """Return where Slicer keeps its Python packages."""
    return Path(sysconfig.get_path("purelib"))


def _freeGb() -> float:
    return shutil.disk_usage(folder()).free / 1e9


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
    parts = [summary(), _("Installed packages keep their versions. No image leaves this computer.")]
    if _torchOf(unmet) and not hasTorchExtension():
        parts.append(
            _(
                "The extension PyTorch, which chooses the build that fits your graphics card, is not installed, so "
                "torch comes as pip finds it. To have it chosen, press Cancel, install that extension in the "
                "Extensions Manager and restart Slicer."
            )
        )
    return "\n\n".join([*parts, _("Install now?")])


def _requirePlace(unmet: list[Requirement]) -> None:
    place, free = folder(), _freeGb()
    needed = _DISK_GB_WITH_TORCH if _torchOf(unmet) else _DISK_GB
    if free < needed:
        raise InputError(
            _(
                "Only {free:.1f} GB are free in {folder}, and {needed:.1f} GB are needed: make room and try again."
            ).format(free=free, folder=place, needed=needed)
        )
    if not os.access(place, os.W_OK):
        raise InputError(notWritable())


def notWritable() -> str:
    """Say that Slicer's folder of packages is not the user's to write to."""
    return _(
        "You may not write to {folder}, where Slicer keeps its Python packages: start Slicer once as an "
        "administrator and install there, or install Slicer in a folder of your own."
    ).format(folder=folder())


def _torchOf(unmet: list[Requirement]) -> Requirement | None:
    return next((requirement for requirement in unmet if requirement.name == "torch"), None)
