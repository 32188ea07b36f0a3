"""The compact promptable model that ships with FewShotSeg: SAM's components on a laptop's budget.

A convolutional stem downsamples 256 px to 16 x 16 tokens, SAM's own transformer blocks (so SAM's LoRA applies) attend
over the whole slice, and feature maps at strides 8, 4 and 2 are skip connections to the mask decoder. Clicks and boxes
enter twice: as SAM's sparse tokens, and rasterized as an image next to the features, from which the network learns what
a click means in minutes of CPU time instead of GPU days.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from FewShotSegLib.errors import InputError
from FewShotSegLib.sam.attention import SmallAttention
from FewShotSegLib.sam.fused import ChannelNorm
from FewShotSegLib.sam.modeling import MLP, Block, MaskDecoder, PromptEncoder, TwoWayTransformer
from FewShotSegLib.sam.network import PromptableNetwork

PATCH = 16  # stride of the token grid in pixels


@dataclass(frozen=True)
class CompactArchitecture:
    """Sizes of a compact model. Widths are channels at strides 2, 4, 8 and of the tokens at stride 16.

    `image_size` is that of the position embeddings, `working_size` the default input size (None: the same).
    """

    image_size: int = 256
    widths: tuple[int, int, int] = (24, 48, 96)
    dim: int = 192
    depth: int = 6
    heads: int = 6
    decoder_mlp: int = 768
    mask_tokens: int = 4
    working_size: int | None = None

    def to_dict(self) -> dict[str, object]:
        return {"kind": "compact", **asdict(self)}

    @classmethod
    def from_card(cls, card: Mapping[str, Any], where: str) -> CompactArchitecture:
        """Return the sizes in the card of a model file; unknown keys are rejected."""
        wrong = InputError(f"{where} is no whole model: the sizes in its card are not those of a compact model.")
        try:
            found = cls(**{**card, "widths": tuple(card["widths"])})
        except (KeyError, TypeError):
            raise wrong from None
        numbers = {entry.name: getattr(found, entry.name) for entry in fields(cls) if entry.name != "widths"}
        limits = {"depth": 64, "heads": 64, "mask_tokens": 64}
        if numbers["working_size"] is None:
            del numbers["working_size"]
        sizes = [(value, limits.get(name, 8192)) for name, value in numbers.items()]
        sizes += [(width, 8192) for width in found.widths]
        fit = all(
            isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most for value, most in sizes
        )
        if not fit or len(found.widths) != 3 or found.dim % found.heads or found.image_size % PATCH:
            raise wrong
        return found


def build_compact(architecture: CompactArchitecture | None = None, *, name: str = "bundled-small") -> PromptableNetwork:
    """An untrained compact model."""
    a = architecture or CompactArchitecture()
    grid = a.image_size // PATCH
    prompt_encoder = PromptEncoder(
        embed_dim=a.dim,
        image_embedding_size=(grid, grid),
        input_image_size=(a.image_size, a.image_size),
        mask_in_chans=16,
    )
    network = PromptableNetwork(
        CompactEncoder(a),
        prompt_encoder,
        CompactMaskDecoder(a),
        name=name,
        image_size=a.image_size,
        pixel_mean=(127.5, 127.5, 127.5),
        pixel_std=(64.0, 64.0, 64.0),
    )
    network.padding_points = 2
    network.skip_channels = a.widths[::-1]
    return network


def set_image_size(network: PromptableNetwork, image_size: int) -> None:
    """Sets the input image size of a compact network; its position embeddings are interpolated."""
    if image_size % PATCH or image_size < 4 * PATCH:
        raise InputError(
            f"The small bundled model works on image sizes that are multiples of {PATCH}, from 64; got {image_size}."
        )
    grid = image_size // PATCH
    network.image_size = image_size
    encoder = network.prompt_encoder
    encoder.input_image_size = (image_size, image_size)
    encoder.image_embedding_size = (grid, grid)
    encoder.mask_input_size = (4 * grid, 4 * grid)


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    # Group norm: no batch statistics, so a fine-tuned model behaves the same for one slice and for eight.
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(8, outside), nn.ReLU()
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False))
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.body(x)))


class CompactEncoder(nn.Module):
    """Images (B, 3, S, S) -> features (B, dim, S/16, S/16) and skips at strides 8, 4, 2."""

    family = "compact"

    def __init__(self, a: CompactArchitecture) -> None:
        super().__init__()
        half, quarter, eighth = a.widths
        grid = a.image_size // PATCH
        self.img_size = a.image_size
        self.stem2 = nn.Sequential(_conv(3, half, stride=2), _conv(half, half))
        self.stem4 = nn.Sequential(_conv(half, quarter, stride=2), _Residual(quarter))
        self.stem8 = nn.Sequential(_conv(quarter, eighth, stride=2), _Residual(eighth), _Residual(eighth))
        self.patch_embed = nn.Conv2d(eighth, a.dim, 3, stride=2, padding=1)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, grid, grid, a.dim))
        self.blocks = nn.ModuleList(
            Block(a.dim, a.heads, mlp_ratio=4.0, use_rel_pos=True, window_size=0, input_size=(grid, grid))
            for _ in range(a.depth)
        )
        for block in self.blocks:
            block.attn.__class__ = SmallAttention
        self.neck = nn.Sequential(nn.Conv2d(a.dim, a.dim, 1, bias=False), ChannelNorm(a.dim))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        half = self.stem2(images)
        quarter = self.stem4(half)
        eighth = self.stem8(quarter)
        tokens = self.patch_embed(eighth).permute(0, 2, 3, 1)  # B h w C
        tokens = tokens + self._positions(tokens.shape[1])
        for block in self.blocks:
            tokens = block(tokens)
        return self.neck(tokens.permute(0, 3, 1, 2)), (eighth, quarter, half)

    def _positions(self, grid: int) -> Tensor:
        if self.pos_embed.shape[1] == grid:
            return self.pos_embed
        resized = F.interpolate(self.pos_embed.permute(0, 3, 1, 2), (grid, grid), mode="bilinear")
        return resized.permute(0, 2, 3, 1)


class CompactMaskDecoder(MaskDecoder):
    """SAM's mask decoder with skip connections: it outputs masks at stride 2 instead of 4."""

    CHANNELS = (64, 32, 16)  # after upscaling to strides 8, 4, 2

    def __init__(self, a: CompactArchitecture) -> None:
        super().__init__(
            transformer_dim=a.dim,
            transformer=TwoWayTransformer(depth=2, embedding_dim=a.dim, mlp_dim=a.decoder_mlp, num_heads=8),
            num_multimask_outputs=a.mask_tokens - 1,
            iou_head_depth=3,
            iou_head_hidden_dim=a.dim,
        )
        half, quarter, eighth = a.widths
        first, second, third = self.CHANNELS
        self.output_upscaling = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in ((a.dim, first), (first, second), (second, third))
        )
        self.output_skips = nn.ModuleList(
            nn.Conv2d(i, o, 1) for i, o in ((eighth, first), (quarter, second), (half, third))
        )
        self.output_fusion = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, c) if c > third else nn.Identity(), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1))
            for c in self.CHANNELS
        )
        self.output_prompts = nn.Conv2d(3, second, 3, padding=1)
        self.prompt_map_downscaling = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, a.dim, 1),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(a.dim, a.dim, third, 3) for _ in range(a.mask_tokens))

    def embed_prompt_map(self, prompt_map: Tensor) -> Tensor:
        """Rasterized prompts (N, 3, 4h, 4w) -> dense prompt embedding (N, C, h, w)."""
        return self.prompt_map_downscaling(prompt_map)

    def upscale(self, source: Tensor, skips: tuple[Tensor, ...], prompt_map: Tensor) -> Tensor:
        """Features (N, C, h, w) -> (N, 16, 8h, 8w). Skips are of B images, each serving N / B prompts in a row."""
        images = len(skips[0])
        extras = (None, self.output_prompts(prompt_map), None)
        for up, skip, fuse, features, extra in zip(
            self.output_upscaling, self.output_skips, self.output_fusion, skips, extras, strict=True
        ):
            # These maps are the largest of the network and memory is the bottleneck on a CPU: sums are in place, and a
            # skip is projected once per image and broadcast, not copied, over the image's prompts.
            source = up(source)
            source.unflatten(0, (images, -1)).add_(skip(features)[:, None])
            if extra is not None:
                source.add_(extra)
            source = fuse(source).add_(source)
        return source
