"""Information on this installation: for bug reports, scripts and agents."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from FewShotSegLib.io.places import cache_folder, user_folder

EXTRAS = {"dicom-seg": "highdicom", "dask": "distributed"}


def system_info() -> dict[str, Any]:
    """Return versions, devices, base models, methods, extras and folders as JSON types."""
    import torch

    from FewShotSegLib.jobs.record import versions
    from FewShotSegLib.methods import METHODS
    from FewShotSegLib.sam import registry

    gpus = [
        {
            "name": f"cuda:{number}",
            "model": torch.cuda.get_device_name(number),
            "memory_bytes": torch.cuda.get_device_properties(number).total_memory,
        }
        for number in range(torch.cuda.device_count())
    ]
    found = {model.name: registry.location(model) for model in registry.models()}
    return {
        "versions": versions(),
        "devices": [{"name": "cpu", "cores": os.cpu_count(), "threads": torch.get_num_threads()}, *gpus],
        "methods": list(METHODS),
        "models": {name: None if path is None else str(path) for name, path in found.items()},
        "extras": {extra: importlib.util.find_spec(package) is not None for extra, package in EXTRAS.items()},
        "folders": {
            "user": str(user_folder()),
            "cache": str(cache_folder()),
            "downloads": str(registry.download_folder()),
        },
    }


def readable_info(values: Mapping[str, Any]) -> list[str]:
    """Return the same as readable lines."""
    lines = [f"{name} {version}" for name, version in values["versions"].items()]
    for device in values["devices"]:
        about = f"{device['cores']} cores" if device["name"] == "cpu" else device["model"]
        lines.append(f"device {device['name']}: {about}")
    lines += [f"model {name}: {path or 'not on this computer'}" for name, path in values["models"].items()]
    lines += [f"extra {name}: {'installed' if there else 'not installed'}" for name, there in values["extras"].items()]
    return [*lines, *(f"folder {name}: {path}" for name, path in values["folders"].items())]
