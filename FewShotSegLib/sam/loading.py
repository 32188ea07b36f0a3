"""Checkpoint files -> networks: the official SAM ViT-B/L/H files, MedSAM, LiteMedSAM, and our own models."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import written_whole
from FewShotSegLib.networks.weights import WRAPPERS, plain_weights
from FewShotSegLib.sam.attention import use_fused_attention
from FewShotSegLib.sam.compact import CompactArchitecture, build_compact, set_image_size
from FewShotSegLib.sam.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.sam.tiny_vit import IMAGE_SIZE, build_litemedsam, from_official

from . import registry

# Width, depth, heads and blocks with global attention, from segment_anything's own table.
VIT = {
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}
PATCH, WINDOW, PROMPT_DIM = 16, 14, 256


def load_base(name_or_path: str | Path, *, image_size: int | None = None, device: str = "cpu") -> PromptableNetwork:
    """The base model with that name or path, frozen, in evaluation mode.

    `image_size` defaults to the model's own (1024 for SAM, 256 for bundled, 160 for bundled-small). For any other
    size the position embeddings are interpolated.
    """
    model, path = registry.find(name_or_path)
    sha256 = registry.checked_sha256(model, path)
    image_size = image_size or model.image_size
    if model.architecture == "compact":
        network = _load_compact(path, image_size)
    elif model.architecture == "tiny_vit":
        network = _load_tiny_vit(path, image_size)
    else:
        network = _load_sam(path, model.architecture, image_size or 1024)
    network.name, network.sha256, network.scale = model.name, sha256, model.scale
    return network.to(device).eval().requires_grad_(False)


def build_sam(architecture: str, image_size: int = 1024) -> PromptableNetwork:
    """An untrained SAM with fused attention; parameter names as in the official checkpoints."""
    if architecture not in VIT:
        raise InputError(f"Unknown architecture {architecture!r}; allowed are {', '.join(VIT)} and compact.")
    if image_size % PATCH or image_size < 4 * PATCH:
        raise InputError(f"SAM works on image sizes that are multiples of {PATCH}, from 64; got {image_size}.")
    width, depth, heads, global_blocks = VIT[architecture]
    return assemble_sam(
        ImageEncoderViT(
            depth=depth,
            embed_dim=width,
            img_size=image_size,
            mlp_ratio=4,
            num_heads=heads,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
            patch_size=PATCH,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=global_blocks,
            window_size=WINDOW,
            out_chans=PROMPT_DIM,
        ),
        image_size=image_size,
        patch=PATCH,
        prompt_dim=PROMPT_DIM,
        mlp_dim=2048,
        iou_hidden=256,
        name=architecture,
    )


def assemble_sam(
    encoder: ImageEncoderViT, *, image_size: int, patch: int, prompt_dim: int, mlp_dim: int, iou_hidden: int, name: str
) -> PromptableNetwork:
    """SAM with any ViT encoder of its kind; a tiny one makes the tests fast."""
    grid = image_size // patch
    use_fused_attention(encoder)
    return PromptableNetwork(
        encoder,
        PromptEncoder(
            embed_dim=prompt_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=prompt_dim, mlp_dim=mlp_dim, num_heads=8),
            transformer_dim=prompt_dim,
            iou_head_depth=3,
            iou_head_hidden_dim=iou_hidden,
        ),
        name=name,
        image_size=image_size,
    )


def _load_sam(path: Path, architecture: str, image_size: int) -> PromptableNetwork:
    state = _checkpoint(path)
    with torch.device("meta"):
        network = build_sam(architecture, image_size)
    expected = network.state_dict()
    missing = sorted(set(expected) - set(state))
    if missing:
        raise InputError(
            f"{path} is no {architecture} checkpoint: {len(missing)} parameters are missing, first {missing[0]}; it "
            f"has {', '.join(sorted(state)[:2])}. Choose the architecture the file was made for."
        )
    fitted = {name: _resized_to(name, state[name].float(), expected[name].shape, path) for name in expected}
    _check_finite(fitted, path)
    network = build_sam(architecture, image_size)
    network.load_state_dict(fitted)
    return network


def _load_tiny_vit(path: Path, image_size: int | None) -> PromptableNetwork:
    """An official LiteMedSAM checkpoint, or a FewShotSeg model."""
    network = build_litemedsam(image_size or IMAGE_SIZE)
    if path.suffix == ".safetensors":
        card, state = _model_of_ours(path, "tiny_vit")
        if card.get("padding_points") not in (0, 1, 2):
            raise InputError(f"{path} is no whole model: its card says nothing of padding points.")
        network.padding_points = card["padding_points"]
    else:
        official = _checkpoint(path)
        if not any(name.endswith(".bn.running_var") for name in official):
            raise InputError(f"{path} is no checkpoint of LiteMedSAM: choose the architecture the file was made for.")
        state = from_official(official)
    _load_whole(network, state, path)
    return network


def _checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint, possibly nested under the key "model"."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's own message suggests loading the file without safeguards
        raise InputError(
            f"{path} is not a readable PyTorch checkpoint: it is damaged, or holds more than weights; "
            "download it again."
        ) from error
    return plain_weights(state, path, WRAPPERS)


def _resized_to(name: str, value: Tensor, shape: torch.Size, path: Path) -> Tensor:
    """Interpolate position embeddings of another image size; all other shapes must match."""
    if value.shape == shape:
        return value
    if name == "image_encoder.pos_embed":  # 1 h w C
        grid = F.interpolate(value.permute(0, 3, 1, 2), shape[1:3], mode="bilinear", align_corners=False)
        return grid.permute(0, 2, 3, 1)
    if ".rel_pos_" in name and value.shape[1:] == shape[1:]:  # (2 size - 1) head_dim, of the global blocks
        return F.interpolate(value.T[None], int(shape[0]), mode="linear", align_corners=False)[0].T.contiguous()
    raise InputError(f"{path}: {name} has shape {tuple(value.shape)}, this architecture needs {tuple(shape)}.")


def _load_compact(path: Path, image_size: int | None) -> PromptableNetwork:
    card, state = _model_of_ours(path, "compact")
    architecture = CompactArchitecture.from_card(card, str(path))
    network = build_compact(architecture)
    _load_whole(network, state, path)
    set_image_size(network, image_size or architecture.working_size or architecture.image_size)
    return network


def _model_of_ours(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Card and tensors of a file that `write_model` wrote."""
    card = registry.card_of(path)
    if card.pop("kind", None) != kind:
        raise InputError(f"{path} holds no {kind} model of FewShotSeg.")
    try:
        return card, {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable model file ({error}); get it again.") from error


def _load_whole(network: PromptableNetwork, state: Mapping[str, Tensor], path: Path) -> None:
    expected = network.state_dict()
    odd = sorted(set(expected) ^ set(state))
    odd += [name for name in expected if name in state and expected[name].shape != state[name].shape]
    if odd:
        raise InputError(f"{path} is no whole model: {len(odd)} parameters differ, first {odd[0]}; get it again.")
    _check_finite(state, path)
    network.load_state_dict(state)


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    odd = [name for name, value in state.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if odd:
        raise InputError(f"{path} holds weights that are not finite numbers, first in {odd[0]}; get it again.")


def write_model(network: PromptableNetwork, path: Path, card: Mapping[str, Any]) -> None:
    """Write a model file of FewShotSeg: parameters in half precision, and the card that `load_base` reads.

    `card` holds "kind" and what else the network is built from.
    """
    state = {name: value.detach().half().contiguous().cpu() for name, value in network.state_dict().items()}
    with written_whole(path) as part:
        part.write_bytes(save(state, metadata={"fewshotseg": json.dumps(dict(card), sort_keys=True)}))
