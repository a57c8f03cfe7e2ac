"""Cases measured over several ranks: one sequence, its tokens spread by :mod:`flashmix.parallel`.

The runner hears one process, the first rank; the others do what that one orders.
"""
