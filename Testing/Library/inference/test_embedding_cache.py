"""Embeddings of slices are kept within a budget, the last used ones longest."""

from __future__ import annotations

import pytest
import torch

from FewShotSegLib.inference.embedding_cache import EmbeddingCache
from FewShotSegLib.sam.network import Embedding


def an_embedding(floats: int) -> Embedding:
    return Embedding(torch.zeros(1, floats // 2), (torch.zeros(1, floats // 2),))


def test_the_least_recently_used_embedding_goes_first() -> None:
    cache = EmbeddingCache(capacity_bytes=4 * 100)
    a, b, c = (an_embedding(40) for _ in range(3))
    cache.put(("a",), a)
    cache.put(("b",), b)
    assert cache.get(("a",)) is a
    cache.put(("c",), c)
    assert (cache.get(("a",)), cache.get(("b",)), cache.get(("c",))) == (a, None, c)


def test_an_embedding_larger_than_the_budget_is_kept_alone() -> None:
    cache = EmbeddingCache(capacity_bytes=100)
    cache.put(("a",), an_embedding(10))
    cache.put(("b",), an_embedding(1000))
    assert len(cache) == 1
    assert cache.get(("b",)) is not None
    cache.put(("b",), an_embedding(1000))
    cache.put(("c",), an_embedding(10))
    assert len(cache) == 1


def test_what_is_there_already_is_kept_and_counts_once() -> None:
    cache = EmbeddingCache(capacity_bytes=4 * 100)
    first = an_embedding(60)
    cache.put(("a",), first)
    cache.put(("a",), an_embedding(60))
    cache.put(("b",), an_embedding(40))
    assert len(cache) == 2
    assert cache.get(("a",)) is first


@pytest.mark.parametrize(("dtype", "kept"), [(torch.float32, 2), (torch.bfloat16, 4), (torch.float64, 1)])
def test_the_budget_is_of_bytes_with_those_of_the_skips(dtype: torch.dtype, kept: int) -> None:
    cache = EmbeddingCache(capacity_bytes=4 * 100)
    for number in range(6):
        cache.put((str(number),), Embedding(torch.zeros(1, 20, dtype=dtype), (torch.zeros(1, 30, dtype=dtype),)))
    assert len(cache) == kept
    assert [number for number in range(6) if cache.get((str(number),)) is not None] == list(range(6 - kept, 6))


def test_a_cleared_one_has_all_of_its_budget_again() -> None:
    cache = EmbeddingCache(capacity_bytes=4 * 100)
    for _ in range(2):
        for name in "ab":
            cache.put((name,), an_embedding(50))
        assert len(cache) == 2
        cache.clear()
        assert (len(cache), cache.get(("a",))) == (0, None)


def test_what_is_unknown_is_none_and_changes_nothing() -> None:
    cache = EmbeddingCache()
    assert cache.get(("a", "b")) is None
    assert len(cache) == 0
