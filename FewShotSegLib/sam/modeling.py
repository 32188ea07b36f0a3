"""The network classes of `segment_anything`, without its torchvision dependency.

`segment_anything/__init__.py` imports torchvision for parts that this library does not use, and a torchvision that does
not match torch fails in many ways. Its `modeling` folder depends on torch only and uses relative imports, so it is
loaded as a package of our own: nothing named `segment_anything` enters `sys.modules`, and a normal import of it works
before or after. If the user has imported it already, those very classes are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segment_anything.modeling.common import LayerNorm2d, MLPBlock
    from segment_anything.modeling.image_encoder import (
        Attention,
        Block,
        ImageEncoderViT,
        PatchEmbed,
        add_decomposed_rel_pos,
        get_rel_pos,
        window_partition,
        window_unpartition,
    )
    from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
    from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom, PromptEncoder
    from segment_anything.modeling.transformer import Attention as DecoderAttention
    from segment_anything.modeling.transformer import TwoWayAttentionBlock, TwoWayTransformer

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "DecoderAttention",
    "ImageEncoderViT",
    "LayerNorm2d",
    "MLPBlock",
    "MaskDecoder",
    "PatchEmbed",
    "PositionEmbeddingRandom",
    "PromptEncoder",
    "TwoWayAttentionBlock",
    "TwoWayTransformer",
    "add_decomposed_rel_pos",
    "get_rel_pos",
    "window_partition",
    "window_unpartition",
]

_THEIRS = "segment_anything.modeling"
_OURS = "FewShotSegLib.sam.segment_anything_modeling"


def _modeling_package() -> str:
    """Return the name in `sys.modules` under which the modelling classes are loaded, loading them if needed."""
    if _THEIRS in sys.modules:
        return _THEIRS
    if _OURS not in sys.modules:
        _load_as(_OURS, _modeling_folder())
    return _OURS


def _modeling_folder() -> Path:
    spec = importlib.util.find_spec("segment_anything")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "The package segment_anything is not installed. Install it with: pip install segment-anything==1.0",
            name="segment_anything",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "modeling"


def _load_as(name: str, folder: Path) -> ModuleType:
    """Import the package in `folder` under `name`, as `import` would do under its own name."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No Python package in {folder}", name=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[loaded]
        raise
    return module


if not TYPE_CHECKING:
    _package = _modeling_package()
    _common = importlib.import_module(f"{_package}.common")
    _image_encoder = importlib.import_module(f"{_package}.image_encoder")
    _mask_decoder = importlib.import_module(f"{_package}.mask_decoder")
    _prompt_encoder = importlib.import_module(f"{_package}.prompt_encoder")
    _transformer = importlib.import_module(f"{_package}.transformer")

    LayerNorm2d, MLPBlock = _common.LayerNorm2d, _common.MLPBlock
    Attention, Block = _image_encoder.Attention, _image_encoder.Block
    ImageEncoderViT, PatchEmbed = _image_encoder.ImageEncoderViT, _image_encoder.PatchEmbed
    add_decomposed_rel_pos, get_rel_pos = _image_encoder.add_decomposed_rel_pos, _image_encoder.get_rel_pos
    window_partition, window_unpartition = _image_encoder.window_partition, _image_encoder.window_unpartition
    MLP, MaskDecoder = _mask_decoder.MLP, _mask_decoder.MaskDecoder
    PositionEmbeddingRandom, PromptEncoder = _prompt_encoder.PositionEmbeddingRandom, _prompt_encoder.PromptEncoder
    TwoWayTransformer, TwoWayAttentionBlock = _transformer.TwoWayTransformer, _transformer.TwoWayAttentionBlock
    # Both files of segment_anything call their attention `Attention`; the encoder's keeps that name.
    DecoderAttention = _transformer.Attention
