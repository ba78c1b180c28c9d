"""Batches of tokens from any source of text: lists, lines of a file, rows of the ``datasets`` library, streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class TokenBatches:
    """Texts as batches of tokens, read lazily, and again each time it is iterated.

    Texts follow each other, with the tokenizer's end-of-text token between them where it has one, and are cut into
    windows of ``length`` tokens; what is left at the end, shorter than a window, is dropped. Memory: one batch.

    Args:
        source: an iterable of texts or of rows with the text in ``column``: a list, an open file, ``datasets.Dataset``
            or ``IterableDataset``, a data frame's records, any generator (which can be read once).
        tokenizer: anything with ``encode(text) -> list of ids``.
        length: tokens per window.
        batch: windows per batch.
        column: where rows hold their text.
        max_tokens: stop after so many tokens.
        named: yield ``{"input_ids": int64 [batch, length]}`` (models of transformers) instead of the tensor.

    Raises:
        ValueError: a length or batch below its least, when built; no text, when read.
        TypeError: a row that holds no text, when read.
    """

    def __init__(
        self,
        source: Iterable[Any],
        tokenizer: Any,
        *,
        length: int = 128,
        batch: int = 8,
        column: str = "text",
        max_tokens: int | None = None,
        named: bool = False,
    ) -> None:
        if length < 2:
            raise ValueError(f"length must be at least 2 tokens, got {length}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if not callable(getattr(tokenizer, "encode", None)):
            raise TypeError(f"tokenizer must have encode(text), got {type(tokenizer).__name__}")
        if isinstance(source, (str, bytes)):
            raise TypeError("source must be an iterable of texts, got one string: pass [text]")
        self.source, self.tokenizer, self.length, self.batch = source, tokenizer, length, batch
        self.column, self.max_tokens, self.named = column, max_tokens, named

    def __iter__(self) -> Iterator[Any]:
        rows: list[list[int]] = []
        for window in self._windows():
            rows.append(window)
            if len(rows) == self.batch:
                yield self._made(rows)
                rows = []
        if rows:
            yield self._made(rows)

    def _made(self, rows: list[list[int]]) -> Any:
        tokens: Tensor = torch.tensor(rows, dtype=torch.int64)
        return {"input_ids": tokens} if self.named else tokens

    def _windows(self) -> Iterator[list[int]]:
        end = getattr(self.tokenizer, "eos_token_id", None)
        waiting: list[int] = []
        given = 0
        for row in self.source:
            text = row.get(self.column) if isinstance(row, Mapping) else row
            if not isinstance(text, str):
                raise TypeError(
                    f"source must hold texts, or rows with a text in column {self.column!r}, got {type(text).__name__}"
                    + (f" (columns {sorted(map(str, row))})" if isinstance(row, Mapping) else "")
                )
            waiting += [int(t) for t in self.tokenizer.encode(text)] + ([] if end is None else [int(end)])
            at = 0
            while len(waiting) - at >= self.length:
                if self.max_tokens is not None and given + self.length > self.max_tokens:
                    return
                yield waiting[at : at + self.length]
                at += self.length
                given += self.length
            waiting = waiting[at:]


def token_batches(source: Any, tokenizer: Any, **how: Any) -> TokenBatches | dict[str, TokenBatches]:
    """Return batches of tokens for ``data`` everywhere in modcut; a mapping of sources (splits) becomes slices.

    See :class:`TokenBatches` for the arguments.
    """
    if isinstance(source, Mapping):
        return {str(name): TokenBatches(part, tokenizer, **how) for name, part in source.items()}
    return TokenBatches(source, tokenizer, **how)
