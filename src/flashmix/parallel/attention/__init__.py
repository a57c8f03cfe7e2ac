"""Mixing of heads across ranks: tokens are exchanged for heads, or keys and values pass a ring."""
