"""TinyViT, the image encoder of LiteMedSAM (Wu et al. 2022; Ma et al. 2024), and the promptable network around it.

Four stages on a 256 px image: inverted residual blocks at full size, then windowed attention at 128, 64 and 64 px, so
features have four times the resolution of SAM's. There are no position embeddings, only attention biases by offset
within a window, so any size that is a multiple of 32 works.

It differs from the official network in two ways, and `from_official` converts its parameters: batch norms are folded
into the preceding convolutions; and the fused projections hold all queries, then all keys, then all values, as SAM's
do, so that the same LoRA applies to both.

Tensors are (B, C, H, W) in channels-last memory, which is (B, H, W, C) without a copy: convolutions use the former,
attention and MLPs the latter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from FewShotSegLib.errors import InputError
from FewShotSegLib.sam.fused import ChannelNorm, bottleneck, linear_of, mlp
from FewShotSegLib.sam.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from FewShotSegLib.sam.network import PromptableNetwork

WIDTHS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
STRIDES = (2, 2, 1)  # from each stage to the next
EXPANSION = 4  # of the hidden layers of MLPs and inverted residual blocks
STRIDE = 4  # of the features
MULTIPLE = 32  # of the image size
IMAGE_SIZE = 256  # of the official checkpoint's training
DIM = 256  # of features and prompt tokens
BATCH_NORM_EPSILON = 1e-5  # of the official training


def _conv(inside: int, outside: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups)


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project (Sandler et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.conv1, self.conv2 = _conv(width, wide), _conv(wide, wide, 3, groups=wide)
        self.conv3 = _conv(wide, width)

    def forward(self, x: Tensor) -> Tensor:
        return bottleneck(x, self.conv1, self.conv2, self.conv3, residual=True)


class Merging(nn.Module):
    """Patch merging between stages."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(inside, outside), _conv(outside, outside, 3, stride=stride, groups=outside)
        self.conv3 = _conv(outside, outside)

    def forward(self, x: Tensor) -> Tensor:
        return bottleneck(x, self.conv1, self.conv2, self.conv3, residual=False)


class WindowAttention(nn.Module):
    """Attention within windows of side x side tokens (M, N, C), with a bias for each offset between two of them."""

    offsets: Tensor

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.num_heads, self.side = heads, side
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, side * side))
        y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
        offsets = (y[:, None] - y).abs() * side + (x[:, None] - x).abs()
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        windows, tokens, width = x.shape
        heads = self.num_heads
        qkv = linear_of(self.qkv, self.norm(x)).view(windows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv  # each M heads N c
        bias = self.attention_biases[:, self.offsets].to(qkv.dtype)  # heads N N
        if torch.is_grad_enabled() and x.device.type == "cpu":
            # In bfloat16, the backward pass of PyTorch's fused attention takes 1.7 times as long as unfused.
            query, key, value = (part.reshape(windows * heads, tokens, -1) for part in (query, key, value))
            biases = bias.expand(windows, -1, -1, -1).reshape(-1, tokens, tokens)
            scores = torch.baddbmm(biases, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
            mixed = torch.bmm(torch.softmax(scores, -1), value).view(windows, heads, tokens, -1)
        else:
            # With an axis for windows: without it PyTorch writes the scores to memory, several times.
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        return linear_of(self.proj, mixed.transpose(1, 2).reshape(windows, tokens, width))


class Mlp(nn.Module):
    """Layer norm and two linear layers per token, with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.norm, self.lin1, self.lin2 = nn.LayerNorm(width), nn.Linear(width, wide), nn.Linear(wide, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., C) -> tokens (..., C)."""
        return mlp(x, self.norm, self.lin1, self.lin2)


class WindowBlock(nn.Module):
    """Windowed attention, a convolution that exchanges information between neighbouring windows, and an MLP."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.attn, self.mlp = WindowAttention(width, heads, side), Mlp(width)
        self.local_conv = _conv(width, width, 3, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)  # B H W C
        x = self.local_conv((tokens + self._in_windows(tokens)).permute(0, 3, 1, 2))
        tokens = x.permute(0, 2, 3, 1)
        return self.mlp(tokens).permute(0, 3, 1, 2)

    def _in_windows(self, tokens: Tensor) -> Tensor:
        """Attention in windows; the last ones are zero-padded, as in training."""
        batch, height, width, channels = tokens.shape
        side = self.attn.side
        padded = F.pad(tokens, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = padded.shape[1] // side, padded.shape[2] // side
        windows = padded.view(batch, rows, side, columns, side, channels).transpose(2, 3)
        seen = self.attn(windows.reshape(-1, side * side, channels))
        seen = seen.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        return seen.reshape(padded.shape)[:, :height, :width]


class TinyViT(nn.Module):
    """Images (B, 3, S, S) -> features (B, 256, S/4, S/4).

    The first stage is convolutional; the other three, `blocks` in sequence, use windowed attention.
    """

    family = "tiny_vit"

    def __init__(self) -> None:
        super().__init__()
        width = WIDTHS[0]
        self.patch_embed = nn.Sequential(_conv(3, width // 2), nn.GELU(), _conv(width // 2, width))
        self.stem = nn.Sequential(*(InvertedResidual(width) for _ in range(DEPTHS[0])))
        self.merging = nn.ModuleList(
            Merging(inside, outside, stride)
            for inside, outside, stride in zip(WIDTHS, WIDTHS[1:], STRIDES, strict=False)
        )
        self.blocks = nn.ModuleList(
            WindowBlock(width, heads, side)
            for width, depth, heads, side in zip(WIDTHS[1:], DEPTHS[1:], HEADS[1:], WINDOWS[1:], strict=True)
            for _ in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(WIDTHS[-1], DIM, 1, bias=False),
            ChannelNorm(DIM),
            nn.Conv2d(DIM, DIM, 3, padding=1, bias=False),
            ChannelNorm(DIM),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(self.patch_embed(images.contiguous(memory_format=torch.channels_last)))
        first = 0
        for merging, depth in zip(self.merging, DEPTHS[1:], strict=True):
            x = merging(x)
            for block in self.blocks[first : first + depth]:
                x = block(x)
            first += depth
        return self.neck(x)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the parameters of an official checkpoint to this network; those outside the encoder are unchanged."""
    folded = _without_batch_norms(state)
    renamed = {_our_name(name): value for name, value in folded.items()}
    for name in (name for name in renamed if ".attn.qkv." in name):
        heads = len(renamed[f"{name.partition('.qkv.')[0]}.attention_biases"])
        value = renamed[name]
        renamed[name] = value.view(heads, 3, -1, *value.shape[1:]).transpose(0, 1).reshape(value.shape)
    return renamed


def _without_batch_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold each batch norm into the preceding convolution: its statistics are fixed, so it is a scale and a shift."""
    folded = {name: value for name, value in state.items() if ".c." not in name and ".bn." not in name}
    for name in (name for name in state if name.endswith(".c.weight")):
        layer = name.removesuffix(".c.weight")
        weight, bias, mean, variance = (
            state[f"{layer}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = weight / (variance + BATCH_NORM_EPSILON).sqrt()
        folded[f"{layer}.weight"] = (state[name].double() * factor.view(-1, 1, 1, 1)).float()
        folded[f"{layer}.bias"] = (bias - mean * factor).float()
    return folded


def _our_name(name: str) -> str:
    """The name here of an official parameter.

    >>> _our_name("image_encoder.layers.2.blocks.1.mlp.fc1.weight")
    'image_encoder.blocks.3.mlp.lin1.weight'
    """
    name = name.replace(".mlp.fc", ".mlp.lin").replace("patch_embed.seq", "patch_embed")
    name = name.replace("layers.0.blocks", "stem")
    found = re.search(r"layers\.(\d)\.(downsample|blocks\.(\d+))", name)
    if found is None or not name.startswith("image_encoder."):
        return name
    stage = int(found[1])
    ours = f"merging.{stage}" if found[2] == "downsample" else f"blocks.{sum(DEPTHS[1:stage]) + int(found[3])}"
    return name.replace(found[0], ours)


def build_litemedsam(image_size: int = IMAGE_SIZE) -> PromptableNetwork:
    """An untrained LiteMedSAM: TinyViT with SAM's prompt encoder and mask decoder."""
    if image_size % MULTIPLE or image_size < 2 * MULTIPLE:
        raise InputError(
            f"This base model works on image sizes that are multiples of {MULTIPLE}, from {2 * MULTIPLE}; got "
            f"{image_size}."
        )
    grid = image_size // STRIDE
    network = PromptableNetwork(
        TinyViT(),
        PromptEncoder(
            embed_dim=DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=DIM, mlp_dim=2048, num_heads=8),
            transformer_dim=DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        name="litemedsam",
        image_size=image_size,
    )
    network.scale = "unit"
    return network
