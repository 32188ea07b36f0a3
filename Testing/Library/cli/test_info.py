"""What an installation says of itself."""

from __future__ import annotations

import json

import pytest
import torch

from FewShotSegLib.cli.info import readable_info, system_info
from FewShotSegLib.cli.main import main
from FewShotSegLib.version import __version__


def test_versions_devices_models_and_folders_are_there(a_tiny_base: str) -> None:
    values = json.loads(json.dumps(system_info()))
    assert values["versions"]["FewShotSegLib"] == __version__
    assert values["versions"]["torch"] == torch.__version__
    assert values["devices"][0]["name"] == "cpu"
    assert len(values["devices"]) == 1 + torch.cuda.device_count()
    assert values["models"]["tiny"].endswith("tiny.safetensors")
    assert values["models"]["vit_h"] is None
    assert set(values["methods"]) == {"lora", "asap", "uda", "gmiseg"}
    assert set(values["extras"]) == {"dicom-seg", "dask"}


def test_people_get_lines_and_programs_json(a_tiny_base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == readable_info(system_info())
    assert "model vit_h: not on this computer" in lines
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == system_info()
