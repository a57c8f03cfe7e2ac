"""Calls that repeat a case run in C++: what Python did for the case is recorded once, as a plan.

A case is an op's shapes, strides, dtypes, device and options. :mod:`.recording` watches a kernel's
Python run, :mod:`.plans` writes what it saw as numbers, csrc/ replays them, autograd's part and the
backward included, and :mod:`.library` builds and loads that.
"""
