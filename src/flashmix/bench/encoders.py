"""Whole encoders of transformers, from their configs with random weights, for suite ``model``.

Shapes: B batch, N tokens, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import flashmix.hf
from flashmix.bench.case import BenchmarkCase, mask_of
from flashmix.errors import ArgumentError
from flashmix.hf.interface import transformers

Inputs = dict[str, Tensor]

SIZES = {
    "bert-base": (768, 12, 12),
    "minilm-l6": (384, 6, 12),
    "bert-tiny": (128, 2, 2),
    "vit-b16": (768, 12, 12),
}
"""Width, layers and heads; the MLP is four times as wide as the model."""
VISION = frozenset({"vit-b16"})
VISION_TOKENS = 197
"""A picture of 224 x 224 pixels in patches of 16, and the class token."""
POSITIONS = 512
"""BERT's table of positions; longer where a case is longer."""
RECOMPILES = 1_000


def prepare_compiler() -> None:
    """Let each model be compiled for itself, or raise: none may run uncompiled in silence."""
    import torch._dynamo

    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = RECOMPILES
    torch._dynamo.config.accumulated_recompile_limit = RECOMPILES
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def build(case: BenchmarkCase) -> tuple[nn.Module, Inputs]:
    """The encoder of a case, and its inputs.

    ``impl`` "naive" and "sdpa" are the model's own attention; else ``mixer`` is swapped in.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    assert case.model is not None
    vanilla = {"naive": "eager", "sdpa": "sdpa"}.get(case.impl)
    config = _config(case)
    config._attn_implementation = vanilla or "sdpa"
    package = transformers()
    kind = package.ViTModel if case.model in VISION else package.BertModel
    with torch.device(case.device):
        model: nn.Module = kind(config, add_pooling_layer=False)
    model = model.to(dtype=getattr(torch, case.dtype), device=case.device)
    if vanilla is None:
        options: dict[str, Any] = {"unpad": True} if case.unpad else {}
        flashmix.hf.swap(model, case.mixer, **options)
    return model.train(case.direction == "train_step"), _inputs(case, config)


def _config(case: BenchmarkCase) -> Any:
    assert case.model is not None
    width, depth, heads = SIZES[case.model]
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }
    if case.model in VISION:
        return transformers().ViTConfig(**sizes)
    positions = max(POSITIONS, case.seq_len)
    return transformers().BertConfig(**sizes, max_position_embeddings=positions)


def _inputs(case: BenchmarkCase, config: Any) -> Inputs:
    """Tokens [B, N] and their mask as a tokenizer gives it, or pictures [B, 3, 224, 224]."""
    if case.model in VISION:
        if case.seq_len != VISION_TOKENS:
            raise ArgumentError(f"{case.model} has {VISION_TOKENS} tokens, got {case.seq_len}")
        shape = (case.batch, 3, config.image_size, config.image_size)
        dtype = getattr(torch, case.dtype)
        return {"pixel_values": torch.randn(shape, device=case.device, dtype=dtype)}
    batch = (case.batch, case.seq_len)
    mask = mask_of(case)
    return {
        "input_ids": torch.randint(config.vocab_size, batch, device=case.device),
        "attention_mask": torch.ones(batch, device=case.device, dtype=torch.int64)
        if mask is None
        else mask.long(),
    }


def called(case: BenchmarkCase, model: nn.Module) -> Callable[..., Any]:
    """The model, compiled where the case asks for it."""
    if case.mode == "eager":
        return model
    mode = None if case.mode == "compile" else case.mode
    compiled: Callable[..., Any] = torch.compile(model, mode=mode, dynamic=False)

    def call(**inputs: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # outputs of the last call may be overwritten
        return compiled(**inputs)

    return call


def hidden(call: Callable[..., Any], inputs: Inputs, *, grad: bool = True) -> Tensor:
    """What the encoder gives, [B, N, W]."""
    with torch.set_grad_enabled(grad):
        output: Tensor = call(**inputs).last_hidden_state
    return output


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, as ``flashmix finetune`` has it."""
    return torch.optim.AdamW(model.parameters(), lr=1e-5)


def train_step(call: Callable[..., Any], inputs: Inputs, optimizer: torch.optim.Optimizer) -> None:
    """Forward, backward of a mean over the class tokens, and the optimizer's step."""
    hidden(call, inputs)[:, 0].float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
