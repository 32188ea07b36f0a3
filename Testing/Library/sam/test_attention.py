"""Fused attention against stock segment_anything: values, gradients, memory, precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from FewShotSegLib.devices import encoding_precision
from FewShotSegLib.sam import attention
from FewShotSegLib.sam.attention import FusedAttention, SmallAttention, relative_table, use_fused_attention
from FewShotSegLib.sam.modeling import Attention, ImageEncoderViT, get_rel_pos


def an_encoder(*, size: int = 64, use_rel_pos: bool = True) -> ImageEncoderViT:
    """Two blocks on an 8 x 8 grid: windows of 3 (so that padding happens), then a global one."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=size,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        out_chans=16,
        use_rel_pos=use_rel_pos,
        window_size=3,
        global_attn_indexes=(1,),
    )
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(parameter, std=0.5)
    return encoder


def stock_and_fused(encoder: ImageEncoderViT) -> tuple[ImageEncoderViT, ImageEncoderViT]:
    fused = copy.deepcopy(encoder)
    use_fused_attention(fused)
    return encoder, fused


@pytest.mark.parametrize("use_rel_pos", [True, False])
@pytest.mark.parametrize("size", [64, 160])  # 160 px: 20 tokens a row, long enough for the other way to add the bias
def test_the_encoder_gives_what_stock_gives(size: int, use_rel_pos: bool) -> None:
    stock, fused = stock_and_fused(an_encoder(size=size, use_rel_pos=use_rel_pos))
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(fused(images), stock(images), atol=2e-5, rtol=1e-5)


def test_parameters_keep_their_names_and_the_class_is_swapped_once() -> None:
    stock, fused = stock_and_fused(an_encoder())
    assert list(fused.state_dict()) == list(stock.state_dict())
    use_fused_attention(fused)
    assert [type(block.attn) for block in fused.blocks] == [FusedAttention] * 2
    assert [type(block.attn) for block in stock.blocks] == [Attention] * 2


def test_a_copy_of_a_fused_encoder_uses_its_own_parameters() -> None:
    _, fused = stock_and_fused(an_encoder())
    twin, images = copy.deepcopy(fused), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        before = twin(images)
        for parameter in fused.parameters():
            parameter.zero_()
        assert torch.equal(twin(images), before)


def test_a_module_without_encoder_attention_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear holds no attention"):
        use_fused_attention(nn.Linear(2, 2))


@pytest.mark.parametrize("size", [64, 160])
@pytest.mark.parametrize(
    ("block_elements", "kept_elements"), [(1 << 21, 1 << 24), (1 << 21, 0), (700, 1 << 24), (700, 0)]
)
def test_gradients_of_input_and_all_parameters_equal_stock(
    size: int, block_elements: int, kept_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_BLOCK_ELEMENTS", block_elements)
    monkeypatch.setattr(attention, "_KEPT_ELEMENTS", kept_elements)
    stock, fused = stock_and_fused(an_encoder(size=size).double())
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    gradients = []
    for encoder in (stock, fused):
        x = images.clone().requires_grad_(True)
        encoder(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in encoder.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)


def random_parts(height: int, width: int, *, heads: int = 3, channels: int = 4) -> tuple[Tensor, ...]:
    generator, tokens = torch.Generator().manual_seed(1), height * width
    shapes = [(heads, tokens, channels)] * 3 + [(heads, tokens, height), (heads, tokens, width)]
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes)


@pytest.mark.parametrize(("block_elements", "kept_elements"), [(1 << 21, 1 << 24), (20, 0)])
def test_finite_differences_confirm_the_backward_pass(
    block_elements: int, kept_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_BLOCK_ELEMENTS", block_elements)
    monkeypatch.setattr(attention, "_KEPT_ELEMENTS", kept_elements)
    parts = random_parts(3, 2)
    assert torch.autograd.gradcheck(lambda *p: attention._BlockedAttention.apply(*p, 0.5), parts)


def test_the_one_hot_form_for_accelerators_equals_the_blocked_form_with_gradients() -> None:
    parts, weights = random_parts(3, 5), torch.randn(3, 15, 4, dtype=torch.float64)
    results = []
    forms: tuple[Callable[..., Tensor], ...] = (attention._one_hot_attention, attention._BlockedAttention.apply)
    for attend in forms:
        out = attend(*parts, 0.5)
        results.append([out, *torch.autograd.grad((out * weights).sum(), parts)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_the_bias_of_a_key_is_the_sum_of_its_row_and_column_part() -> None:
    q, k, v, rel_h, rel_w = (p.detach() for p in random_parts(2, 3, heads=1))
    scores = 0.5 * q[0] @ k[0].T
    for key in range(6):
        scores[:, key] += rel_h[0, :, key // 3] + rel_w[0, :, key % 3]
    expected = scores.softmax(-1) @ v[0]
    torch.testing.assert_close(attention._BlockedAttention.apply(q, k, v, rel_h, rel_w, 0.5)[0], expected)


def test_relative_positions_of_another_image_size_are_interpolated_as_stock_does() -> None:
    stock, fused = stock_and_fused(an_encoder(size=64))
    tokens = torch.randn(1, 12, 12, 32)
    with torch.inference_mode():
        torch.testing.assert_close(fused.blocks[1](tokens), stock.blocks[1](tokens), atol=2e-5, rtol=1e-5)


def test_blocks_cover_every_query_row_once_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_BLOCK_ELEMENTS", 100)
    for count, tokens in ((5, 4), (3, 12), (1, 300), (7, 1)):
        seen = torch.zeros(count, tokens, dtype=torch.int64)
        for heads, rows in attention._blocks(count, tokens):
            seen[heads, rows] += 1
            block = seen[heads, rows].numel() * tokens
            assert block <= max(100, tokens)
        assert torch.equal(seen, torch.ones_like(seen))


def test_the_scores_of_all_heads_are_never_held_at_once() -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.untyped_storage().size() // tensor.element_size())
            return result

    attend = FusedAttention(8, num_heads=4, use_rel_pos=True, input_size=(40, 40))
    with Watch(), torch.inference_mode():
        attend(torch.randn(1, 40, 40, 8))
    assert 0 < largest <= attention._BLOCK_ELEMENTS < 4 * 1600 * 1600


def test_autocast_to_bfloat16_trains_and_stays_close() -> None:
    stock, fused = stock_and_fused(an_encoder())
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = fused(images)
    out.float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in fused.parameters())
    assert (out.float() - stock(images)).norm() / stock(images).norm() < 2e-2


def test_masks_from_bfloat16_encoding_agree_with_stock() -> None:
    stock, fused = stock_and_fused(an_encoder(size=128).eval())
    images, read_out = torch.randn(4, 3, 128, 128), torch.randn(8, 16)
    with torch.inference_mode():
        expected = torch.einsum("mc,bchw->bmhw", read_out, stock(images)) > 0
        with encoding_precision("cpu", bfloat16=True) as used:
            features = fused(images).float()
        found = torch.einsum("mc,bchw->bmhw", read_out, features) > 0
    assert used is torch.bfloat16
    assert (found & expected).sum() / (found | expected).sum() >= 0.99


@pytest.mark.parametrize(("rows", "size"), [(2 * 5 - 1, 5), (2 * 8 - 1, 5), (2 * 3 - 1, 6)])
def test_the_table_of_relative_positions_is_that_of_segment_anything(rows: int, size: int) -> None:
    embeddings = torch.randn(rows, 4)
    assert torch.equal(relative_table(embeddings, size), get_rel_pos(size, size, embeddings))


def test_the_attention_of_the_compact_model_gives_what_stock_gives() -> None:
    torch.manual_seed(0)
    stock = Attention(16, 2, use_rel_pos=True, input_size=(5, 5))
    for name in ("rel_pos_h", "rel_pos_w"):
        nn.init.normal_(getattr(stock, name), std=0.5)
    small = copy.deepcopy(stock)
    small.__class__ = SmallAttention
    tokens = torch.randn(2, 5, 5, 16)
    torch.testing.assert_close(small(tokens), stock(tokens), atol=1e-6, rtol=1e-5)
