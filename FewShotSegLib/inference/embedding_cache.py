"""Cache of slice embeddings."""

from __future__ import annotations

from collections import OrderedDict

from FewShotSegLib.sam.network import Embedding


class EmbeddingCache:
    """LRU cache of embeddings with a byte budget. Keys identify slice content, base model and adapter."""

    def __init__(self, capacity_bytes: int = 512 * 2**20) -> None:
        self.capacity_bytes = capacity_bytes
        self._entries: OrderedDict[tuple[str, ...], Embedding] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: tuple[str, ...]) -> Embedding | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def clear(self) -> None:
        """Empty the cache."""
        self._entries.clear()
        self._bytes = 0

    def put(self, key: tuple[str, ...], embedding: Embedding) -> None:
        if key in self._entries:
            return
        self._entries[key] = embedding
        self._bytes += _size(embedding)
        while self._bytes > self.capacity_bytes and len(self._entries) > 1:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= _size(oldest)


def _size(embedding: Embedding) -> int:
    return sum(t.numel() * t.element_size() for t in (embedding.features, *embedding.skips))
