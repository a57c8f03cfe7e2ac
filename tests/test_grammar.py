"""The mixer grammar: whatever a text or a config's record holds, a mixer or one sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmix import create_mixer
from flashmix.errors import SHOWN, ArgumentError
from flashmix.mixers import MixerSpec, parse_layers, parse_mixer, parse_pattern
from flashmix.models import Block, Encoder

HOSTILE = {
    "brackets": "(" * 5_000,
    "brackets of an option": "local(window=" + "(" * 900 + ")" * 900 + ")",
    "mixed brackets": "local(window=[" * 60,
    "closing brackets": "local" + ")" * 900,
    "crossed brackets": "hybrid(mixers=('fnet', 'local'])",
    "signs": "local(window=" + "-" * 900 + "1)",
    "sums": "local(window=" + "1+" * 400 + "1)",
    "powers": "local(window=9**9**9**9)",
    "attributes": "local(window=" + "a." * 400 + "a)",
    "calls": "local(window=__import__('os'))",
    "a number without end": "local(window=" + "9" * 900 + ")",
    "an exponent": "local(window=1e999999999)",
    "digits of another script": "local(window=\u0663\u0662)",
    "a superscript": "local(window=\u00b2)",
    "a key of another script": "local(w\u0456ndow=3)",
    "NUL": "local(window=\0)",
    "NUL in a name": "fnet\0",
    "a lone surrogate": "fnet\ud800",
    "open quotes": "hybrid(mixers=('fnet",
    "quotes that end escaped": "hybrid(mixers=('fnet\\'))",
    "unknown escapes": r"hybrid(mixers=('fnet', '\N{DIGIT ONE}'))",
    "bytes": "hybrid(mixers=(b'fnet', b'local'))",
    "a set": "hybrid(mixers={'fnet', 'local'})",
    "many names": "+".join(["fnet"] * 3_000),
    "many options": "local(" + ",".join(f"w{i}=1" for i in range(3_000)) + ")",
    "an option twice": "local(window=3, window=5)",
    "an option twice alike": "local(window=3, window=3)",
    "an unknown name": "a" * 999,
    "too long a name": "a" * 10_000_000,
    "hybrids in hybrids": "hybrid(mixers=(" * 60,
    "modes without end": "spectral(modes=999999999999999999)",
    "more modes than memory": "spectral(modes=99999999999)",
    "a context without end": "spectral(causal=True, context=999999999999999999)",
    "a keyword": "local(window=lambda: 3)",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_refused_in_a_sentence(text):
    for take in (
        lambda: create_mixer(text, 8),
        lambda: Block(8, text),
        lambda: Encoder(8, 2, text),
        lambda: parse_mixer(text).build(8),
    ):
        with pytest.raises(ArgumentError) as caught:
            take()
        assert len(str(caught.value)) < 3 * SHOWN + 300


@pytest.mark.parametrize(
    "text",
    [
        "fnet*999999999",
        "fnet*" + "9" * 9_000,
        "fnet*\u0663",
        "fnet*999999,fnet",
        ",".join(["fnet*99999"] * 900),
        "fnet," * 100_000,
        "*" * 9_000,
        "fnet*" * 1_000,
        "local(window=" + "9*" * 4_000 + "9)*2",
    ],
    ids=lambda text: text[:20],
)
def test_hostile_patterns_are_refused_in_a_sentence(text):
    for parse in (parse_layers, lambda text: parse_pattern(text, 12)):
        with pytest.raises(ArgumentError) as caught:
            parse(text)
        assert len(str(caught.value)) < 3 * SHOWN + 300


def nested(levels):
    """Hybrids within hybrids, each level quoted in the one above."""
    spec = MixerSpec("local", {"window": 3})
    for _ in range(levels):
        spec = MixerSpec("hybrid", {"mixers": ("fnet", str(spec))})
    return str(spec)


def test_hybrids_may_be_nested_and_text_bounds_how_deep():
    mixer = create_mixer(nested(4), 8)
    for _ in range(4):
        mixer = mixer.mixers[1]
    assert mixer.window == 3
    with pytest.raises(ArgumentError, match="characters are read"):
        create_mixer(nested(12), 8)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("local(window=64)", {"window": 32}),
        ("local(window=64)", {"window": 64}),
        ("local(impl=reference)", {"impl": "auto"}),
        ("fourier(num_heads=2)", {"num_heads": 2}),
        ("spectral+local", {"mixers": ("fnet", "local")}),
    ],
)
def test_an_option_in_text_and_as_an_argument_is_refused(text, options):
    with pytest.raises(ArgumentError, match=rf"{next(iter(options))} .* keep one"):
        create_mixer(text, 8, **options)


VALUES = st.one_of(
    st.integers(-(10**18) + 1, 10**18 - 1),
    st.booleans(),
    st.none(),
    st.text(alphabet="abz019 ()[]'\"\\,=+*\u00e9", max_size=12),
    st.floats(-1e6, 1e6).map(lambda x: round(x, 3)),
)


@given(
    st.dictionaries(
        st.text(alphabet="abc_xyz", min_size=1, max_size=8),
        st.one_of(VALUES, st.lists(VALUES, max_size=3), st.tuples(VALUES, VALUES)),
        max_size=4,
    )
)
def test_what_a_spec_prints_is_what_is_read(options):
    spec = MixerSpec("local", options)
    assert parse_mixer(str(spec)) == spec


WORDS = ["fnet", "local", "hybrid", "window", "mixers", "=", "(", ")", "[", "]", ",", "+", "*", "'"]
WORDS += ['"', "\\", "9", "-", ".", " ", "\0", "\u0663", "True", "e9", "\n"]


@given(st.lists(st.sampled_from(WORDS), max_size=60).map("".join))
def test_any_text_is_a_pattern_or_a_sentence(text):
    try:
        layers = parse_layers(text)
    except ArgumentError as error:
        assert len(str(error)) < 3 * SHOWN + 300
        return
    for spec in dict.fromkeys(map(str, layers)):
        assert str(parse_mixer(spec)) == spec


def test_a_record_in_a_config_is_read_as_any_text():
    pytest.importorskip("transformers", reason="transformers is not installed")
    import flashmix
    from hf_models import classifier

    model = classifier()
    for text in HOSTILE.values():
        for mixers in (text, {0: text}):
            with pytest.raises(ArgumentError):
                flashmix.swap(model, mixers)
