"""The cache of native kernels: nothing that others could have written is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import require_native
from flashmix import explain
from flashmix.errors import ImplementationError
from flashmix.ops import _build as build
from flashmix.ops._cpu import library
from test_cpu import fake_compiler, unloaded  # noqa: F401

BUILT = 'for last; do :; done; echo built > "$last"'


@pytest.fixture
def built(unloaded, monkeypatch):  # noqa: F811
    """A library that a compiler made, and how often one ran."""
    count = unloaded.parent / "count"
    monkeypatch.setenv("CXX", fake_compiler(unloaded.parent, f"echo x >> {count}; {BUILT}"))
    path = build.build()
    assert count.read_text() == "x\n"
    return path, count


def test_the_folder_and_its_files_are_the_users_alone(built):
    path, count = built
    assert path.parent.stat().st_mode & 0o077 == 0
    assert path.stat().st_mode & 0o077 == 0
    assert build.build() == path
    assert count.read_text() == "x\n", "what is complete is not built again"


def writable_by_others(path):
    path.chmod(0o722)


def elsewhere(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(other)


def truncated(path):
    path.write_bytes(path.read_bytes()[:2])


def of_somebody(path):
    path.write_bytes(b"\x7fELF of somebody else")


def unsigned(path):
    path.with_suffix(".sha256").unlink()


@pytest.mark.parametrize("harm", [writable_by_others, elsewhere, truncated, of_somebody, unsigned])
def test_a_file_that_is_not_as_it_was_built_is_built_anew(built, harm):
    path, count = built
    harm(path)
    assert build.build() == path
    assert path.read_text() == "built\n"
    assert not path.is_symlink()
    assert count.read_text() == "x\nx\n"


def test_a_folder_that_others_write_becomes_the_users_alone(built):
    path, _ = built
    path.parent.chmod(0o777)
    build.build()
    assert path.parent.stat().st_mode & 0o077 == 0


def test_nothing_is_loaded_from_another_users_folder(built, monkeypatch):
    path, _ = built
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ImplementationError, match="belongs to another user"):
        build.build()


def test_nothing_is_loaded_where_any_user_can_replace_the_folder(built):
    path, _ = built
    path.parent.parent.chmod(0o777)
    with pytest.raises(ImplementationError, match="any user can replace"):
        build.build()


def test_what_killed_builds_left_is_removed(built):
    path, _ = built
    stale = path.parent / "build-killed"
    stale.mkdir()
    (stale / "half.so").write_text("half")
    path.unlink()
    build.build()
    assert not list(path.parent.glob("build-*"))


def test_a_library_that_does_not_load_is_forgotten(built):
    path, count = built
    assert "cannot be loaded" in (library.missing() or "")
    build.build()
    assert count.read_text() == "x\nx\n"
    assert path.exists()


def test_a_lock_that_is_never_freed_is_not_waited_for_for_ever(built, monkeypatch):
    path, _ = built
    path.unlink()
    monkeypatch.setattr(build, "MOST_SECONDS", 0.05)
    with (
        build._locked(path.parent / "build.lock"),
        pytest.raises(ImplementationError, match="another process has held"),
    ):
        build.build()


@pytest.mark.parametrize(
    ("cxx", "said"),
    [
        ("g++ 'unbalanced", "No closing quotation"),
        ("   ", "C++ compiler"),
        ("/", "cannot be built"),
        ("/nonexistent/g++", "cannot be built"),
        ("true", "made no library"),
    ],
)
def test_an_odd_compiler_is_a_reason(unloaded, monkeypatch, cxx, said):  # noqa: F811
    monkeypatch.setenv("CXX", cxx)
    assert said in (library.missing() or "")
    assert explain("fnet", (2, 8, 4)).impl == "torch"
    assert not list(unloaded.glob("build-*"))


def test_where_native_kernels_are_required_their_absence_fails_the_run(unloaded, monkeypatch):  # noqa: F811
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    require_native()
    monkeypatch.setenv("FLASHMIX_REQUIRE_NATIVE", "1")
    with pytest.raises(pytest.UsageError, match="cannot be built"):
        require_native()


def test_without_a_home_there_is_no_cache_and_no_exception(unloaded, monkeypatch):  # noqa: F811
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert "no home directory" in (library.missing() or "")
    assert explain("fnet", (2, 8, 4)).impl == "torch"
