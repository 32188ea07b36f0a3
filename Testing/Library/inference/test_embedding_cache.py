"""Embeddings of slices are kept within a budget, the last used ones longest."""

from __future__ import annotations

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
