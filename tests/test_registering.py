"""Implementations from outside the package: called by name, chosen by measurements, as our own."""

from __future__ import annotations

import warnings
from importlib.metadata import EntryPoint

import pytest
import torch

import flashmix
from flashmix._core import plugins
from flashmix._core.machine import cpu_name
from flashmix.errors import ArgumentError
from flashmix.ops import OPERATORS, Implementation, fnet
from flashmix.ops.dispatch import operator, tables


def scaled(x, mask, norm):
    """Plain FFTs, and a call that leaves a trace."""
    CALLS.append(tuple(x.shape))
    return torch.fft.fft2(x.float()).real.to(x.dtype)


CALLS: list[tuple[int, ...]] = []
TOY = Implementation(name="toy", run=scaled, summary="plain FFTs", devices=("cpu",))


@pytest.fixture(autouse=True)
def restored(monkeypatch, tmp_path):
    """The registry and the tables as they were; no measurements of this machine."""
    monkeypatch.setenv(tables.VARIABLE, str(tmp_path / "dispatch.json"))
    monkeypatch.setattr(plugins, "_loaded", set())
    before = list(OPERATORS["fnet"].implementations)
    tables.forget()
    CALLS.clear()
    yield
    OPERATORS["fnet"].implementations[:] = before
    tables.forget()


def register_toy():
    flashmix.register_implementation("fnet", TOY)


def test_an_implementation_from_outside_runs_by_name_and_is_explained():
    x = torch.randn(2, 6, 4)
    before = flashmix.explain("fnet", (2, 6, 4)).impl
    register_toy()
    torch.testing.assert_close(fnet(x, impl="toy"), fnet(x))
    assert CALLS == [(2, 6, 4)]
    explained = flashmix.explain("fnet", (2, 6, 4))
    assert explained.impl == before, "auto takes it only where measurements say so"
    assert explained.alternatives["toy"] == "can run: plain FFTs"


def test_auto_takes_it_where_it_was_measured_to_be_the_fastest():
    register_toy()
    sizes = {"batch": 2, "seq_len": 6, "dim": 4}
    entry = {"sizes": sizes, "ms": {"cpu": [2.0, 2.0, 2.0], "toy": [1.0, 1.0, 1.0]}}
    tables.write(cpu_name(), None, {"fnet": {"float32": {"forward": [entry]}}})
    fnet(torch.randn(2, 6, 4))
    assert CALLS == [(2, 6, 4)]


def test_names_that_are_taken_and_unknown_ops_are_refused():
    register_toy()
    with pytest.raises(ArgumentError, match="has an implementation called 'toy'"):
        register_toy()
    with pytest.raises(ArgumentError, match="unknown op 'fnett'; did you mean 'fnet'"):
        flashmix.register_implementation("fnett", TOY)


def installed(monkeypatch, *values):
    points = [EntryPoint(name="toy", value=value, group=operator.GROUP) for value in values]
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: [p for p in points if p.group == group]
    )
    tables.forget()


def test_an_installed_package_registers_by_its_entry_point(monkeypatch):
    installed(monkeypatch, "test_registering:register_toy")
    assert flashmix.explain("fnet", (2, 6, 4)).alternatives["toy"] == "can run: plain FFTs"


def test_an_entry_point_that_fails_is_left_out_with_a_warning(monkeypatch):
    installed(monkeypatch, "nowhere:at_all")
    with pytest.warns(UserWarning, match="leaves out 'nowhere:at_all' of the entry points"):
        flashmix.explain("fnet", (2, 6, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fnet(torch.randn(2, 6, 4))
