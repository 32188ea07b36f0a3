"""The promptable network: SAM's image encoder, prompt encoder and mask decoder behind `encode` and `decode`.

Stock SAM (ViT-B/L/H, MedSAM) and the bundled models share this interface, so LoRA, structure tokens, prompts and
training are implemented once. Parameter names equal those of the official checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from FewShotSegLib.sam import two_way
from FewShotSegLib.sam.modeling import PromptEncoder

# Labels of the points in a PromptBatch. Box corners are points too, as in SAM's own prompt encoder.
PADDING, NEGATIVE, POSITIVE, BOX_CORNER_LOW, BOX_CORNER_HIGH = -1, 0, 1, 2, 3

MOST_LOGIT = 16.0  # clamp of network outputs used as mask prompts: larger logits carry no information

SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)  # of 0..255 RGB, as in SAM's training
SAM_PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, eq=False)
class Embedding:
    """Output of `encode`: features (B, C, h, w) and skips, high-resolution maps from coarse to fine (none for
    SAM).
    """

    features: Tensor
    skips: tuple[Tensor, ...] = ()

    def one(self, index: int) -> Embedding:
        """The embedding of one image of the batch, with batch size 1."""
        return Embedding(self.features[index : index + 1], tuple(skip[index : index + 1] for skip in self.skips))

    def to(self, *args: object, **kwargs: object) -> Embedding:
        return Embedding(self.features.to(*args, **kwargs), tuple(s.to(*args, **kwargs) for s in self.skips))  # type: ignore[call-overload]


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """N prompts in network pixels.

    coords (N, T, 2): x right, y down, pixel centres at integers. labels (N, T): see the constants above.
    masks (N, 1, 4h, 4w): logits of a previous mask, at four times the resolution of the features. has_mask (N,) bool:
    which rows have one. tokens (N, n, C): learned structure tokens, appended to the sparse prompt.
    """

    coords: Tensor
    labels: Tensor
    masks: Tensor | None = None
    has_mask: Tensor | None = None
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return self.coords.shape[0]

    def with_masks(self, masks: Tensor, has_mask: Tensor | None = None) -> PromptBatch:
        return replace(self, masks=masks, has_mask=has_mask)

    def with_tokens(self, tokens: Tensor) -> PromptBatch:
        return replace(self, tokens=tokens)


def mask_prompts(logits: Tensor, side: int) -> Tensor:
    """Logits (N, h, w) as mask prompts (N, 1, side, side)."""
    return F.interpolate(logits[:, None], (side, side), mode="bilinear").clamp(-MOST_LOGIT, MOST_LOGIT)


class PromptableNetwork(nn.Module):
    """Image encoder, prompt encoder and mask decoder.

    `image_encoder(images)` returns features, or (features, skips); `mask_decoder` is SAM's MaskDecoder or one with the
    same parts plus `upscale(source, skips, prompt_map)`.
    """

    # SAM's classes are not typed.
    image_encoder: Any
    prompt_encoder: Any
    mask_decoder: Any
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: nn.Module,
        *,
        name: str,
        image_size: int,
        pixel_mean: tuple[float, float, float] = SAM_PIXEL_MEAN,
        pixel_std: tuple[float, float, float] = SAM_PIXEL_STD,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.name = name
        self.image_size = image_size
        self.sha256 = ""
        self.scale: Literal["sam", "unit"] = "sam"  # intensity scale it was trained with, see `normalize`
        self.skip_channels: tuple[int, ...] = ()  # of the encoder's skips, coarse to fine
        self.padding_points = 1  # appended to clicks without a box, as in the model's training
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def family(self) -> str:
        """Model family, which determines the presets: "compact", "tiny_vit" or "sam"."""
        return str(getattr(self.image_encoder, "family", "sam"))

    @property
    def embed_dim(self) -> int:
        """Width C of prompt tokens and image features."""
        return int(self.prompt_encoder.embed_dim)

    @property
    def mask_input_size(self) -> int:
        """Side length of a mask prompt in pixels."""
        return int(self.prompt_encoder.mask_input_size[0])

    def normalize(self, images: Tensor, scale: str = "sam") -> Tensor:
        """Grey images (B, S, S) in [0, 1] -> network input (B, 3, S, S). `scale="unit"` passes 0..1 as SAMed does."""
        rgb = images[:, None].expand(-1, 3, -1, -1)
        return rgb if scale == "unit" else (rgb * 255.0 - self.pixel_mean) / self.pixel_std

    def encode(self, images: Tensor) -> Embedding:
        """Network input (B, 3, S, S) -> Embedding."""
        encoded = self.image_encoder(images)
        return Embedding(*encoded) if isinstance(encoded, tuple) else Embedding(encoded)

    def decode(self, embedding: Embedding, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """Logits (N, M, h', w') of all M mask tokens and their predicted IoU (N, M).

        The embedding holds B images and the prompts are grouped by image, N / B for each. The decoder of
        segment_anything handles one image at a time, so its forward pass is reimplemented with its own layers.
        """
        decoder, count = self.mask_decoder, len(prompts)
        silent = getattr(decoder, "silent_tokens", decoder.mask_tokens.weight[:0])  # of a two-class decoder
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, silent])
        tokens = torch.cat([output_tokens.expand(count, -1, -1), self.sparse_embedding(prompts)], dim=1)  # N T C
        finish = self._with_skips if embedding.skips else self._without_skips
        hidden, logits = finish(embedding, prompts, tokens)
        return logits, decoder.iou_prediction_head(hidden[:, 0])[:, : decoder.mask_tokens.num_embeddings]

    def _without_skips(self, embedding: Embedding, prompts: PromptBatch, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """SAM: tokens (N, T, C) after the transformer, and logits (N, M, 4h, 4w)."""
        features = embedding.features
        size = features.shape[-2:]
        kind = features.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype
        dense = self._dense(prompts, features)
        if prompts.masks is None:
            features = features + dense[:1]  # shared by all prompts
        else:
            features = features.repeat_interleave(len(prompts) // len(features), 0) + dense
        with torch.autocast(kind, enabled=False):
            image = features.flatten(2).transpose(1, 2).to(dtype)  # B P C
            positions = self.prompt_encoder.pe_layer(size).flatten(1).t().to(dtype)  # P C
            hidden, image = two_way.attended(self.mask_decoder.transformer, image, positions, tokens)
            upscaling = self.mask_decoder.output_upscaling
            return hidden, two_way.mask_logits(upscaling, image, self._mask_weights(hidden), (size[0], size[1]))

    def _with_skips(self, embedding: Embedding, prompts: PromptBatch, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The compact model: the same, with the encoder's skip connections; logits (N, M, 8h, 8w)."""
        features = embedding.features.repeat_interleave(len(prompts) // len(embedding.features), 0)
        source = features + self._dense(prompts, features)
        grid = self.prompt_encoder.pe_layer(source.shape[-2:])[None].expand(len(prompts), -1, -1, -1)
        hidden, attended = self.mask_decoder.transformer(source, grid, tokens)
        attended = attended.transpose(1, 2).reshape(source.shape)
        upscaled = self.mask_decoder.upscale(attended, embedding.skips, self.prompt_map(prompts))
        return hidden, torch.einsum("nmc,nchw->nmhw", self._mask_weights(hidden), upscaled)

    def _mask_weights(self, hidden: Tensor) -> Tensor:
        """(N, M, c): hypernetwork weights of the mask tokens for the upscaled features."""
        networks = self.mask_decoder.output_hypernetworks_mlps
        return torch.stack([network(hidden[:, 1 + number]) for number, network in enumerate(networks)], dim=1)

    def sparse_embedding(self, prompts: PromptBatch) -> Tensor:
        """Points, box corners and structure tokens as tokens (N, T, C)."""
        encoder = self.prompt_encoder
        extent = (self.image_size, self.image_size)
        table = torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)])
        position = encoder.pe_layer.forward_with_coords(prompts.coords + 0.5, extent)
        position = position * (prompts.labels != PADDING)[..., None]
        sparse = position + table[prompts.labels + 1]
        return sparse if prompts.tokens is None else torch.cat([sparse, prompts.tokens], dim=1)

    def _dense(self, prompts: PromptBatch, features: Tensor) -> Tensor:
        encoder = self.prompt_encoder
        absent = encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        if prompts.masks is None:
            dense = absent.expand(len(prompts), -1, *features.shape[-2:])
        else:
            dense = encoder.mask_downscaling(prompts.masks)
            if prompts.has_mask is not None:
                dense = torch.where(prompts.has_mask.view(-1, 1, 1, 1), dense, absent)
        if hasattr(self.mask_decoder, "embed_prompt_map"):
            dense = dense + self.mask_decoder.embed_prompt_map(self.prompt_map(prompts))
        return dense

    def prompt_map(self, prompts: PromptBatch) -> Tensor:
        """Clicks and boxes rasterized as an image (N, 3, m, m): positive clicks, negative clicks, box interior."""
        size = self.mask_input_size
        ruler = (torch.arange(size, device=self.device) + 0.5) * (self.image_size / size) - 0.5
        x, y = prompts.coords[..., 0, None], prompts.coords[..., 1, None]  # N T 1
        # The spot is about one decoder pixel wide, whatever the image size.
        width = 2 * (self.image_size / size) ** 2
        spot_x, spot_y = torch.exp(-((ruler - x) ** 2) / width), torch.exp(-((ruler - y) ** 2) / width)
        spots = []
        for label in (POSITIVE, NEGATIVE):
            chosen = (prompts.labels == label).to(spot_x.dtype)[..., None]
            spots.append(torch.einsum("nty,ntx->nyx", spot_y * chosen, spot_x).clamp(max=1))
        low, high = prompts.coords[:, :-1], prompts.coords[:, 1:]  # N T-1 2: every pair that may be a box
        is_box = (prompts.labels[:, :-1] == BOX_CORNER_LOW)[..., None]
        inside = [
            ((ruler >= low[..., axis, None]) & (ruler <= high[..., axis, None]) & is_box).to(spot_x.dtype)
            for axis in (0, 1)
        ]
        box = torch.einsum("nty,ntx->nyx", inside[1], inside[0]).clamp(max=1)
        return torch.stack([*spots, box], dim=1)
