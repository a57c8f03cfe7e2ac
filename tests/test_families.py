"""What the swap holds for every family of models that it takes, and how it refuses the others."""

import copy
import functools
import re
import sys
import zlib
from pathlib import Path

import pytest
import torch
from transformers.masking_utils import eager_mask

import flashmix
from flashmix.errors import ModelError
from flashmix.hf.attention import mixer_of
from flashmix.hf.families import FAMILIES
from flashmix.hf.guard import calls_interface
from flashmix.hf.support import columns
from flashmix.hf.tiny import tiny_inputs
from hf_models import WORDS, transformers

MIXERS = {
    "attention": "attention",
    "local": "local(window=5)",
    "topk": "topk(topk=3)",
    "fnet": "fnet",
    "spectral": "spectral(modes=3)",
    "fourier": "fourier",
}
PAGE = Path(__file__).parent.parent / "docs" / "models.md"
FORMULA = "formula_of_the_test"
REACH, KEPT, MODES = 2, 3, 3
LENGTHS, PADDED = (12, 7), 15

swap_module = sys.modules[flashmix.swap.__module__]

each_family = pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            family,
            id=family.name,
            marks=pytest.mark.skipif(
                not family.exists(),
                reason=f"transformers {transformers.__version__} has no {family.model}",
            ),
        )
        for family in FAMILIES
    ],
)
each_mixer = pytest.mark.parametrize("mixer", MIXERS)


@functools.cache
def original(family):
    """A model in float64, with weights large enough that attention is far from uniform."""
    model = family.build().double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() > 1:
            parameter.data = noise * (1.2 / max(1, parameter[0].numel()) ** 0.5)
        else:
            parameter.data += 0.1 * noise
    return model


@functools.cache
def example(family):
    """Inputs of the family, and which of its tokens are real; None for all."""
    model = family.encoder(original(family))
    if model.main_input_name == "input_ids":
        return texts()
    for inputs in tiny_inputs(model):
        inputs.pop("attention_mask", None)
        try:
            run(model, inputs)
            return inputs, None
        except Exception:
            continue
    pytest.fail(f"no inputs for {family.name}")


def texts():
    """Two texts padded with words, which stand where only padding may."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, WORDS, (2, PADDED), generator=generator)
    mask = torch.arange(PADDED) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}, mask


def run(model, inputs):
    dtype = next(model.parameters()).dtype
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return model(**inputs)[0]


def swapped(family, mixer, dtype=torch.float64):
    """A swapped copy, whose mixers' own parameters are moved from where they start."""
    model = copy.deepcopy(original(family)).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        if mixer != "attention":  # that a model is tried with; once is enough
            patch.setattr(swap_module, "try_attention", lambda *_: None)
        flashmix.swap(family.encoder(model), mixer)
    generator = torch.Generator().manual_seed(1)
    for path, parameter in model.named_parameters():
        if ".mixer." in path:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += noise.to(dtype)
    return model


DEPTHS = {}
"""Of each family and mixer that was tried, the number of layers; 0 where it was refused."""


@functools.cache
def page():
    """The version of transformers and the rows of docs/models.md, a dict of cells by name."""
    text = PAGE.read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    header = rows[0]
    families = {row[0]: dict(zip(header, row, strict=True)) for row in rows if row[0] != header[0]}
    return re.search(r"transformers (\S+)\.", text)[1], families


def test_the_page_of_models_lists_every_family():
    _, rows = page()
    assert list(rows) == [family.name for family in FAMILIES]
    for family in FAMILIES:
        assert rows[family.name]["class"] == f"`{family.model}`"
        assert {rows[family.name][mixer] for mixer in MIXERS} <= {"yes", "refused"}


def promised(family, mixer):
    """Whether docs/models.md says that the family takes the mixer, for this transformers."""
    version, rows = page()
    return version == transformers.__version__ and rows[family.name][mixer] == "yes"


def attempt(family, mixer):
    """A swapped copy, or None where the family does not take the mixer, which it says why."""
    refused = DEPTHS.get((family, mixer)) == 0 or DEPTHS.get((family, "attention")) == 0
    try:
        model = None if refused else swapped(family, mixer)
    except ModelError as error:
        assert type(family.encoder(original(family))).__name__ in str(error) or "layer" in str(
            error
        )
        model = None
    DEPTHS[family, mixer] = (
        0 if model is None else len(flashmix.swap_report(family.encoder(model)).layers)
    )
    return model


def depth(family, mixer):
    """Number of layers with mixers; 0 where it is refused."""
    if (family, mixer) not in DEPTHS:
        attempt(family, mixer)
    return DEPTHS[family, mixer]


def reference(mixer, real):
    """A mixer as plain formulas, for the attention interface of transformers.

    ``real`` bool [B, N] or None. What a formula needs of a layer but q, k and v lies on its module.
    """

    def rows(x, mix):
        """``mix`` of each row's real tokens [n, ...]."""
        y = torch.zeros_like(x)
        for row in range(len(x)):
            seen = slice(None) if real is None else real[row]
            y[row, seen] = mix(x[row, seen])
        return y

    def fnet(x):
        return torch.fft.fft2(x).real

    def spectral(module, x):
        weight, bias = module.filter_of_the_test
        spectrum = torch.fft.rfft(x, dim=0)
        modes = min(MODES, len(spectrum))
        kept = torch.zeros_like(spectrum)
        kept[:modes] = spectrum[:modes] * torch.view_as_complex(weight)[:modes]
        return torch.fft.irfft(kept, n=len(x), dim=0) + bias

    def fourier(v):
        spectrum = torch.fft.rfft(v, dim=0)  # [F, H, dh]
        power = spectrum.abs().square().mean(-1, keepdim=True) + 1e-6
        gain = (power.log().softmax(0)) * len(spectrum)
        return torch.fft.irfft(spectrum * gain, n=len(v), dim=0)

    def attend(module, query, key, value, attention_mask, **options):
        if mixer in ("fnet", "spectral"):
            mix = fnet if mixer == "fnet" else functools.partial(spectral, module)
            y = rows(module.tokens_of_the_test, mix)
            return y.unflatten(-1, (query.shape[1], -1)), None
        if mixer == "fourier":
            groups = query.shape[1] // value.shape[1]
            return rows(value.repeat_interleave(groups, 1).transpose(1, 2), fourier), None
        n = query.shape[2]
        shape = (query.shape[0], query.shape[1], n, n)
        mask = query.new_zeros(shape) if attention_mask is None else attention_mask.expand(shape)
        mask = mask.clamp(min=-1e30)  # softmax in float32 of less than it holds is NaN
        if mixer == "local":
            near = (torch.arange(n)[:, None] - torch.arange(n)).abs() <= REACH
            mask = mask.masked_fill(~near, -1e30)
        if mixer == "topk":  # in place of a window, too
            mask = (
                mask
                if real is None
                else mask.new_zeros(shape).masked_fill(~real[:, None, None, :], -1e30)
            )
            keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
            scores = query @ keys.mT * options["scaling"] + mask
            least = scores.topk(min(KEPT, n), -1).values[..., -1:]
            mask = mask.masked_fill(scores < least, -1e30)
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, mask, **options)

    return attend


def expected(family, mixer, model, inputs, real):
    """Outputs of the original with a formula in place of each mixer of ``model``.

    None where it does not call the attention interface; the tests of its adapter hold formulas.
    """
    plain = with_formulas(family)
    transformers.AttentionInterface.register(FORMULA, reference(mixer, real))
    layers = {path: layer for path, layer in plain.named_modules() if calls_interface(layer)}
    for path, layer in layers.items():
        filters = mixer_of(model.get_submodule(path))
        if isinstance(filters, flashmix.mixers.Spectral):
            layer.filter_of_the_test = filters.filter().detach(), filters.bias.detach()
    return run(plain, inputs).detach() if layers else None


@functools.cache
def with_formulas(family):
    """The original, whose attention is what is registered as ``FORMULA``."""
    transformers.AttentionMaskInterface.register(FORMULA, eager_mask)
    plain = copy.deepcopy(family.encoder(original(family)))
    for module in plain.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            module.config._attn_implementation = FORMULA
        if calls_interface(module):
            module.register_forward_pre_hook(_keep_tokens, with_kwargs=True)
    return plain


def _keep_tokens(module, args, options):
    module.tokens_of_the_test = args[0] if args else options["hidden_states"]


def at_real_tokens(y, real):
    return y[real] if real is not None and y.shape[:2] == real.shape else y


def without_gradient(model, y):
    """Parameters that no gradient of the outputs ``y`` reaches."""
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    return {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}


@functools.cache
def untrained(family):
    """Parameters of the original that no gradient reaches, such as those of a pooler."""
    model = copy.deepcopy(family.encoder(original(family)))
    return without_gradient(model, run(model, example(family)[0]))


def alone_of(inputs):
    """The shorter of two texts, without padding."""
    ids = inputs["input_ids"][1:, : LENGTHS[1]]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@functools.cache
def ignores_padding(family):
    """Whether the original does; MobileBERT's embeddings reach into padding."""
    model, (inputs, _) = family.encoder(original(family)), example(family)
    with torch.no_grad():
        alone, beside = run(model, alone_of(inputs)), run(model, inputs)[1:, : LENGTHS[1]]
    return bool((alone - beside).norm() <= 1e-5 * alone.norm())


@each_mixer
@each_family
def test_a_family_mixes_as_formulas_say_ignores_padding_and_trains_every_weight(family, mixer):
    model = attempt(family, MIXERS[mixer])
    if model is None:
        assert not promised(family, mixer), "docs/models.md says yes; run: make models"
        return
    model = family.encoder(model)
    inputs, real = example(family)
    got = run(model, inputs)

    want = expected(family, mixer, model, inputs, real)
    if want is not None:
        close = {"atol": 1e-5, "rtol": 1e-5}  # many a model's softmax is one of float32
        torch.testing.assert_close(
            at_real_tokens(got.detach(), real), at_real_tokens(want, real), **close
        )

    if real is not None and got.shape[:2] == real.shape and ignores_padding(family):
        alone = alone_of(inputs)
        torch.testing.assert_close(run(model, alone)[0], got[1, : LENGTHS[1]])

    assert not without_gradient(model, got) - untrained(family)


@each_family
def test_a_swapped_family_is_saved_and_loaded_whole(family, tmp_path):
    taken = [mixer for mixer in MIXERS.values() if depth(family, mixer)]
    if not taken:
        return
    layers = range(depth(family, taken[0]))
    first = zlib.crc32(family.name.encode())
    mixers = {index: taken[(first + index) % len(taken)] for index in layers}
    model = swapped(family, mixers, torch.float32)
    model.save_pretrained(tmp_path)
    loaded = flashmix.from_pretrained(tmp_path)
    inputs, _ = example(family)
    with torch.no_grad():
        assert torch.equal(run(family.encoder(loaded), inputs), run(family.encoder(model), inputs))


def test_list_models_says_what_a_family_takes_and_why_not_the_rest(capsys):
    from flashmix.cli import main

    assert main(["list", "--models", "t5*"]) == main(["list", "--models", "BertModel"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("T5 (encoder) (T5EncoderModel): attention, local")
    assert lines[1].startswith("    not topk") and "relative positions" in lines[1]
    assert lines[-1] == f"BERT (BertModel): {', '.join(columns())}"
    assert main(["list", "--models", "nothing"]) == 2
    assert "no family of models is named 'nothing'" in capsys.readouterr().err
