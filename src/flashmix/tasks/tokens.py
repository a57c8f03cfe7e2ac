"""Texts as token ids, made once: tokenised in bulk, kept flat, cut and packed from there.

Shapes: n texts, T tokens in all, N tokens of the longest kept, R packed rows of L tokens.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashmix._files import write_whole
from flashmix.errors import ArgumentError, missing_extra

CHUNK = 4096


@dataclass(frozen=True)
class Special:
    """Ids of a vocabulary's special tokens, and its size."""

    pad: int
    cls: int
    sep: int
    mask: int
    size: int


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts without special tokens, end to end.

    Attributes:
        ids: int32 [T].
        ends: int64 [n], where each text ends in ``ids``.
    """

    ids: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, int64 [n]."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    def padded(self, seq_len: int, special: Special) -> tuple[Tensor, Tensor]:
        """[CLS] text [SEP], cut to ``seq_len``: ids int32 [n, N], and lengths int64 [n]."""
        kept = self.lengths.clamp(max=seq_len - 2)
        starts = self.ends - self.lengths
        width = int(kept.max()) + 2
        out = torch.full((len(self), width), special.pad, dtype=torch.int32)
        out[:, 0] = special.cls
        place = torch.arange(width - 2)
        for first in range(0, len(self), CHUNK):
            rows = slice(first, first + CHUNK)
            real = place < kept[rows, None]
            source = (starts[rows, None] + place).clamp(max=max(0, len(self.ids) - 1))
            part = out[rows, 1:-1]
            part[real] = self.ids[source[real]]
        out.scatter_(1, kept[:, None] + 1, special.sep)
        return out, kept + 2

    def packed(self, row: int, special: Special) -> Tensor:
        """Rows of [CLS] and a stretch of all texts joined by [SEP], no padding: int32 [R, L]."""
        stream = torch.full((len(self.ids) + len(self),), special.sep, dtype=torch.int32)
        text = torch.repeat_interleave(torch.arange(len(self)), self.lengths)
        stream[torch.arange(len(self.ids)) + text] = self.ids
        rows = len(stream) // (row - 1)
        if not rows:
            raise ArgumentError(
                f"{len(stream)} tokens do not fill one packed row of {row}; use more text"
            )
        body = stream[: rows * (row - 1)].reshape(rows, row - 1)
        return torch.cat([torch.full((rows, 1), special.cls, dtype=torch.int32), body], dim=1)


def load_tokenizer(name: str) -> Any:
    """A tokenizer by folder or hub id, no code from the hub.

    Raises:
        ArgumentError: there is none of that name, or it lacks [CLS], [SEP], [PAD] or [MASK].
        MissingDependencyError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing_extra("transformers", "finetune", "reading text") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"no tokenizer at {name!r} ({str(error).splitlines()[0]}); pass --tokenizer a folder "
            "or hub id"
        ) from None
    special_tokens(tokenizer)
    return tokenizer


def special_tokens(tokenizer: Any) -> Special:
    """The ids that flashmix needs of a tokenizer."""
    ids: dict[str, Any] = {
        name: getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "cls", "sep", "mask")
    }
    if missing := [name for name, value in ids.items() if value is None]:
        raise ArgumentError(
            f"the tokenizer has no {' or '.join(missing)} token; BERT's vocabulary has them all"
        )
    return Special(size=len(tokenizer), **{name: int(value) for name, value in ids.items()})


def tokenise(tokenizer: Any, texts: Sequence[str]) -> Tokens:
    """Token ids of ``texts``, read from the cache where these texts were met before.

    The cache is $XDG_CACHE_HOME/flashmix (~/.cache/flashmix), a safetensors file for each list of
    texts and vocabulary.
    """
    from safetensors.torch import load, save

    cached = _cache_file(tokenizer, texts)
    if cached.exists():
        held = load(cached.read_bytes())
        return Tokens(held["ids"], held["ends"])
    ids: list[Tensor] = []
    counts: list[int] = []
    for first in range(0, len(texts), CHUNK):
        batch = tokenizer(
            list(texts[first : first + CHUNK]), add_special_tokens=False, verbose=False
        )["input_ids"]
        counts += [len(one) for one in batch]
        ids.append(torch.tensor([i for one in batch for i in one], dtype=torch.int32))
    tokens = Tokens(torch.cat(ids), torch.tensor(counts).cumsum(0))
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_whole(cached, save({"ids": tokens.ids, "ends": tokens.ends}))
    return tokens


def _cache_file(tokenizer: Any, texts: Sequence[str]) -> Path:
    digest = hashlib.sha256()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update((backend.to_str() if backend else repr(tokenizer.get_vocab())).encode())
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "flashmix" / f"tokens-{digest.hexdigest()[:32]}.safetensors"
