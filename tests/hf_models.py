"""Tiny encoders of transformers with random weights, and their inputs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import flashmix

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

WORDS, LAYERS, HEADS, WIDTH = 60, 2, 2, 16

COMMON = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
TEXT = {
    "bert": ("Bert", COMMON),
    "roberta": ("Roberta", COMMON),
    "electra": ("Electra", {**COMMON, "embedding_size": 8}),
    "albert": ("Albert", {**COMMON, "embedding_size": 8}),
    "mpnet": ("MPNet", COMMON),
    "distilbert": (
        "DistilBert",
        {
            "vocab_size": WORDS,
            "dim": WIDTH,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": 32,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
        },
    ),
}
VISION = {**COMMON, "image_size": 16, "patch_size": 4}

# Every mixer, with options small enough to matter at a dozen tokens.
MIXERS = [
    "attention",
    "attention(impl=naive)",
    "local(window=5)",
    "topk(topk=3)",
    "topk(topk=4, selection=block)",
    "fnet",
    "fnet(norm=ortho)",
    "spectral(modes=3)",
    "spectral(modes=3, unitary=True)",
    "fourier",
    "spectral(modes=3)+local(window=3)",
    "hybrid(mixers=('fourier', 'attention'), combine=heads)",
    "hybrid(mixers=('fnet', 'topk(topk=2)'), combine=gate)",
]


def classifier(name: str = "bert", head: str = "ForSequenceClassification", **options) -> nn.Module:
    """A seeded classifier of three classes, in eval mode."""
    torch.manual_seed(0)
    if name == "vit":
        config = transformers.ViTConfig(**VISION, num_labels=3, **options)
        return transformers.ViTForImageClassification(config).eval()
    family, config = TEXT[name]
    config = getattr(transformers, f"{family}Config")(**{**config, "num_labels": 3, **options})
    return getattr(transformers, f"{family}{head}")(config).eval()


def swapped(mixers, name: str = "bert", **options) -> nn.Module:
    """:func:`classifier` after a swap, its mixers' own parameters moved from where they start."""
    model = flashmix.swap(classifier(name, **options), mixers)
    generator = torch.Generator().manual_seed(1)
    for path, parameter in model.named_parameters():
        if ".mixer." in path:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += noise.to(parameter.dtype)
    return model


def reviews(*lengths: int, width: int | None = None, pad: int = 1) -> dict[str, Tensor]:
    """Seeded token ids of these lengths, padded at the right to the longest or to ``width``."""
    width = width or max(lengths)
    ids, mask = torch.full((len(lengths), width), pad), torch.zeros(len(lengths), width).long()
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(row)
        ids[row, :length] = torch.randint(5, WORDS, (length,), generator=generator)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def images(batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=generator)}


def inputs(name: str) -> dict[str, Tensor]:
    return images() if name == "vit" else reviews(12, 7)


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits in float64 arithmetic, whatever the model's dtype."""
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    return copy.deepcopy(model).double()(**batch).logits
