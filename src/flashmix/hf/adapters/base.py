"""What adapters share: the weights of the module, and the call of the attention interface.

Shapes: B batch, H heads, N tokens, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from flashmix.hf.attention import mixer_of

POSITIONS = {
    "relative_attention_bias": "",
    "distance_embedding": "",
    "rel_attn_embed": "",
    "rel_embeddings": "LayerNorm",
}
"""Modules that make relative positions by the names that models give them, each with its norm."""


class Adapter(nn.Module):
    """An attention module of transformers with its weights, whose forward calls the interface.

    A subclass may derive from the module's class too, for methods of it.
    """

    absolute: bool = True
    """Whether the model knows positions besides those in the scores."""
    positional: ClassVar[tuple[str, ...]] = ()
    """Modules that only the relative positions in the scores need; they go with q and k."""
    positional_parameters: ClassVar[tuple[str, ...]] = ()
    """Parameters that only these need, where q and k may be gone."""
    positions_read: bool = True
    """Whether this layer, or one that has its relative positions too, reads them."""
    config: Any

    @classmethod
    def adapt(cls, module: nn.Module, config: Any) -> Self | None:
        """``module`` as an adapter; None where its options are not taken."""
        made = cls.__new__(cls)
        for name, value in vars(module).items():
            made.__dict__[name] = value.copy() if isinstance(value, dict) else value
        made.config = config
        return made

    @property
    def reads_scores(self) -> bool:
        """Whether the layer's mixer has scores, to which positions may be added."""
        return _has_scores(self)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None,
        **options: Any,
    ) -> Tensor:
        """Attention of q, k and v [B, N, D] as the model's config has it, [B, N, D].

        ``options`` are those of the interface: dropout, scaling, position_bias [B or 1, H, N, N].
        """
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        parts = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
        call = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        y: Tensor = call(self, *parts, mask, **options)[0]
        return y.flatten(2)


def freeze_unread_positions(model: nn.Module) -> None:
    """Stop training relative positions that no layer reads; no gradient would reach them.

    They are made by a layer, or before all of them, and read by that layer and the next, up to one
    that makes its own.
    """
    made: list[nn.Module] = []
    readers: list[nn.Module] = []
    for module in model.modules():
        children = dict(module.named_children())
        if not POSITIONS.keys().isdisjoint(children):
            _freeze(made, readers)
            names = {name: also for name, also in POSITIONS.items() if name in children}
            made = [children[name] for name in names]
            made += [children[name] for name in names.values() if name in children]
            readers = []
        if mixer_of(module) is not None:
            readers.append(module)
    _freeze(made, readers)


def _freeze(made: list[nn.Module], readers: list[nn.Module]) -> None:
    scored = [_has_scores(module) for module in readers]
    for module, scores in zip(readers, scored, strict=True):
        if isinstance(module, Adapter):
            module.positions_read = any(scored)
            for name in () if scores else module.positional_parameters:
                getattr(module, name).requires_grad_(False)
    if readers and not any(scored):
        for module in made:
            module.requires_grad_(False)


def _has_scores(module: nn.Module) -> bool:
    mixer = mixer_of(module)
    return mixer is None or "k" in mixer.reads
