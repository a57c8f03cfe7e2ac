"""Which lengths Fourier transforms are quick at."""

from __future__ import annotations

import functools

PRIMES = (2, 3, 5, 7, 11, 13)
"""The factors of such a length: those that every library has a butterfly for."""


@functools.lru_cache(maxsize=1024)
def smooth(n: int) -> bool:
    """Whether ``n`` is a product of these primes."""
    for prime in PRIMES:
        while n % prime == 0:
            n //= prime
    return n == 1
