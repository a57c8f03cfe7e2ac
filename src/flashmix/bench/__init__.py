"""Measurements: suites as data, isolated workers, statistics, and a store that loses nothing."""

from flashmix.bench.case import BenchmarkCase, Suite
from flashmix.bench.measure import Run, measure
from flashmix.bench.profiling.api import profile
from flashmix.bench.repeat import measured_rows as read_rows
from flashmix.bench.runner import Progress, run_suite
from flashmix.bench.store import read_run
from flashmix.bench.suites import SUITES, Grid, build_suite

__all__ = [
    "SUITES",
    "BenchmarkCase",
    "Grid",
    "Progress",
    "Run",
    "Suite",
    "build_suite",
    "measure",
    "profile",
    "read_rows",
    "read_run",
    "run_suite",
]
