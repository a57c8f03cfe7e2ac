"""Suite ``profile``: one encoder of transformers, its parts, swaps of it, and the alternatives."""
