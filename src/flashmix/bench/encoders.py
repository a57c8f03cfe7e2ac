"""Whole encoders of transformers, from their configs with random weights.

They are those of suites ``model`` and ``profile``.

Shapes: B batch, N tokens, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import flashmix.hf
from flashmix.bench.case import BenchmarkCase, mask_of
from flashmix.bench.profiling.catalogue import build_config, sizes_of
from flashmix.bench.profiling.engines import ENGINES, engine
from flashmix.bench.profiling.free import swap_free
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

    ``impl`` "naive" and "sdpa" are the model's own attention; "free" is no mixing at all; else
    ``mixer`` is swapped in.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    vanilla = {"naive": "eager", "sdpa": "sdpa"}.get(case.impl)
    config = _config(case)
    fused = case.config is None or sizes_of(case.config).fused
    config._attn_implementation = vanilla or ("sdpa" if fused else "eager")
    with torch.device(case.device):
        empty = _empty(case, config)
    model: nn.Module = empty.to(dtype=getattr(torch, case.dtype), device=case.device)
    if vanilla is None:
        options: dict[str, Any] = {"unpad": True} if case.unpad else {}
        if case.impl == "free":
            swap_free(model, **options)
        else:
            flashmix.hf.swap(model, case.mixer, **options)
    return model.train(case.direction == "train_step"), _inputs(case, model)


def _empty(case: BenchmarkCase, config: Any) -> Any:
    """The encoder with random weights, without a head; suite ``profile`` keeps its pooling."""
    package = transformers()
    if case.config is not None:
        return package.AutoModel.from_config(config, trust_remote_code=False)
    kind = package.ViTModel if case.model in VISION else package.BertModel
    return kind(config, add_pooling_layer=False)


def _config(case: BenchmarkCase) -> Any:
    if case.config is not None:
        return build_config(case.config, case.seq_len)
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


def _inputs(case: BenchmarkCase, model: Any) -> Inputs:
    """Tokens [B, N] and their mask as a tokenizer gives it, or pictures [B, C, H, W]."""
    config = model.config
    if model.main_input_name == "pixel_values":
        if case.model in VISION and case.seq_len != VISION_TOKENS:
            raise ArgumentError(f"{case.model} has {VISION_TOKENS} tokens, got {case.seq_len}")
        shape = (case.batch, config.num_channels, config.image_size, config.image_size)
        dtype = getattr(torch, case.dtype)
        return {"pixel_values": torch.randn(shape, device=case.device, dtype=dtype)}
    if model.main_input_name != "input_ids":
        raise ArgumentError(f"{case.model} reads {model.main_input_name}, not texts or pictures")
    batch = (case.batch, case.seq_len)
    ids = torch.randint(config.vocab_size, batch, device=case.device)
    mask = mask_of(case)
    if mask is None:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if case.config is not None and (pad := getattr(config, "pad_token_id", None)) is not None:
        ids = ids.masked_fill(~mask, pad)
    return {"input_ids": ids, "attention_mask": mask.long()}


def called(case: BenchmarkCase, model: nn.Module, inputs: Inputs) -> Callable[..., Any]:
    """The model, compiled or given to another engine where the case asks for it."""
    if case.mode == "eager":
        return model
    if case.mode in ENGINES:
        return engine(case.mode, model, inputs, case.device)
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
