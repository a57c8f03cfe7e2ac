"""Mixers from outside the package: known everywhere by one declaration, as our own."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import flashmix
import recipe
from flashmix import ops
from flashmix._core import plugins
from flashmix.bench import Grid, build_suite
from flashmix.bench.actions import prepare
from flashmix.bench.estimate import operations
from flashmix.cli import main
from flashmix.errors import ArgumentError
from flashmix.mixers import MIXERS, Benchmarks, MixerConfig, QKVConfig, QKVMixer
from flashmix.models import Encoder
from flashmix.ops import OPERATORS, Implementation
from flashmix.visualize import mixer_subject, theme, white_noise
from helpers import assert_close, randn


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """The mixers as they were; no installed package has been loaded."""
    before = dict(MIXERS)
    monkeypatch.setattr(plugins, "_loaded", set())
    yield
    MIXERS.clear()
    MIXERS.update(before)


@pytest.fixture
def neighbours():
    return recipe.define()


def test_a_mixer_from_outside_is_built_by_name_in_patterns_and_from_its_config(neighbours):
    mixer = flashmix.create_mixer("neighbours(each=2)", 8, num_heads=2)
    assert type(mixer) is type(flashmix.create_mixer(mixer.config)) is neighbours
    assert type(MixerConfig.from_dict(mixer.config.to_dict()).build()) is neighbours
    local = flashmix.create_mixer("local(window=5)", 8, num_heads=2)
    local.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 9, 8)
    assert torch.equal(mixer(x), local(x))
    encoder = Encoder(8, 2, "neighbours(each=3),attention")
    assert [type(b.mixer).__name__ for b in encoder.blocks] == ["Neighbours", "Attention"]
    assert flashmix.list_mixers()[-1] == "neighbours"
    with pytest.raises(ArgumentError, match="option of mixer 'neighbours': 'window'"):
        flashmix.create_mixer("neighbours(window=3)", 8)


def test_swap_puts_it_between_the_projections_of_a_pretrained_model(neighbours):
    hf_models = pytest.importorskip("hf_models")
    model = flashmix.swap(hf_models.classifier("bert"), "neighbours(each=99)")
    want = flashmix.swap(hf_models.classifier("bert"), "attention")
    batch = hf_models.inputs("bert")
    assert_close(hf_models.logits(model, batch), hf_models.logits(want, batch))


def test_suites_charts_and_pictures_take_it_from_its_class(neighbours, capsys):
    suite = build_suite("quick", Grid(directions=("forward",), seq_lens=(32,), dims=(16,)))
    (case,) = (case for case in suite.cases if case.mixer == "neighbours(each=8)")
    assert prepare(case).ran["impl_ran"].keys() == {"local_attention"}
    assert operations(case) > 0
    assert theme.tone("neighbours(each=8)") == theme.Tone(*neighbours.colour)
    pictures = mixer_subject("neighbours", white_noise(12, 8), dim=8, num_heads=2).pictures()
    assert {"weights", "influence"} <= {one.name for one in pictures}
    assert main(["list", "neigh*"]) == 0
    assert "attention to the nearest tokens" in capsys.readouterr().out


def test_an_implementation_from_outside_runs_in_it_by_name_in_explain_and_in_suites(neighbours):
    def toy(q, k, v, mask, before, after):
        return ops.local_attention(q, k, v, window=(before, after), mask=mask, impl="reference")

    operator = OPERATORS["local_attention"]
    before = list(operator.implementations)
    given = Implementation(name="toy", run=toy, summary="by the reference", devices=("cpu",))
    try:
        flashmix.register_implementation("local_attention", given)
        x = randn(1, 6, 8)
        mixer = flashmix.create_mixer("neighbours(impl=toy)", 8).double()
        with ops.dispatch.recorded_choices() as choices:
            y = mixer(x)
        mixer.impl = "auto"
        assert_close(y, mixer(x))
        assert "toy" in {choice.impl for choice in choices}
        explained = flashmix.explain("local_attention", (1, 1, 6, 8), window=3)
        assert explained.alternatives["toy"] == "can run: by the reference"
        cases = build_suite("kernels", Grid(mixers=("local",))).cases
        assert "toy" in {case.impl for case in cases}
    finally:
        operator.implementations[:] = before


class Nameless(QKVMixer):
    summary, cost, Config = "", "", QKVConfig


def with_config(*fields, **attributes):
    """A subclass of the recipe's mixer with a config of its own."""
    base = MIXERS["neighbours"]
    config = dataclasses.make_dataclass(
        "C", fields, bases=(base.Config,), namespace=attributes, frozen=True, kw_only=True
    )
    return type("Other", (base,), {"Config": config})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: 3, "expected a subclass of Mixer, got 3"),
        (lambda: Nameless, "must define mix_whole, mix_with_weights"),
        (lambda: type("Other", (MIXERS["local"],), {}), "must have a Config of its own"),
        (lambda: with_config(name="local"), "there is a mixer called 'local', LocalAttention"),
        (lambda: with_config(name="copy"), "the name must be a word"),
        (lambda: with_config(name="a b"), "the name must be a word"),
        (lambda: with_config(name="other", op="locale"), "op must be one of attention"),
        (lambda: with_config(("extra", int, 3), name="other"), "__init__ must take extra"),
    ],
)
def test_what_cannot_be_a_mixer_is_refused_and_not_listed(neighbours, make, words):
    names = list(MIXERS)
    with pytest.raises(ArgumentError, match=words):
        flashmix.register_mixer(make())
    assert list(MIXERS) == names


def test_one_file_and_one_line_or_one_entry_point_are_a_mixer(tmp_path):
    """In a copy of the package, what CONTRIBUTING.md gives; and a package that nobody imports."""
    assert "one file and one line" in recipe.TEXT
    assert f"`{recipe.LINE}`" in recipe.TEXT.replace("\n", " ")
    shutil.copytree(Path(flashmix.__file__).parent, tmp_path / "flashmix")
    mixers = tmp_path / "flashmix" / "mixers"
    (mixers / "neighbours.py").write_text(recipe.FILE)
    with (mixers / "__init__.py").open("a") as file:
        file.write(f"{recipe.LINE}\n")
    (tmp_path / "theirs.py").write_text(recipe.FILE.replace('"neighbours"', '"installed"'))
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[flashmix.mixers]\nany_name = theirs\n")
    code = "from flashmix.cli import main; main(['list', '*n[es]*'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("attention to the nearest tokens") == 2
    assert {"neighbours:", "installed:"} <= set(done.stdout.split())


def test_suites_are_those_that_mixers_can_name():
    names = {field.name for field in dataclasses.fields(Benchmarks)} - {"longest_sharded"}
    assert names - {"digits"} <= set(flashmix.bench.SUITES)
