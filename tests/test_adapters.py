"""Adapters give what their models' own code gives, also under a band or with a formula in it."""

import copy
import functools

import pytest
import torch

import flashmix
from flashmix.errors import ModelError
from flashmix.hf.adapters import ADAPTERS, Adapter, adapted
from flashmix.hf.families import FAMILIES
from flashmix.hf.tiny import tiny_inputs
from test_families import MODES, REACH, at_real_tokens, original, run, swapped, texts

MIXERS = {"local": "local(window=5)", "fnet": "fnet", "spectral": f"spectral(modes={MODES})"}


NAMES = ("BigBird", "BLIP (text)", "DeBERTa", "DeBERTa-v2, DeBERTa-v3", "FLAVA (text)")
NAMES += ("FLAVA (vision)", "Megatron-BERT", "MPNet", "RemBERT", "TAPAS", "VisualBERT", "WavLM")
FOUND = {family.name: family for family in FAMILIES if family.name in NAMES}
each_adapted = pytest.mark.parametrize("name", NAMES)


def test_every_adapter_is_tested_but_that_of_a_model_which_needs_two_kinds_of_input():
    modules = (one for f in FOUND.values() for one in f.encoder(original(f)).modules())
    names = {type(one).__module__.rpartition(".")[2] + "." + type(one).__name__ for one in modules}
    assert ADAPTERS.keys() - names == {"modeling_vilt.ViltSelfAttention"}


def batch(family):
    """Inputs, and which of their tokens are real."""
    model = family.encoder(original(family))
    if model.main_input_name == "input_ids":
        return texts()
    inputs = next(tiny_inputs(model))
    inputs.pop("attention_mask", None)
    if "input_values" in inputs:
        inputs["input_values"] = inputs["input_values"].repeat(1, 3)  # more frames than the window
    return inputs, None


def attentions(model):
    """The modules that adapters stand in for."""
    return [one for one in model.modules() if adapted(one, model.config) is not None]


def with_band(model, inputs):
    """Outputs of the model's own attention to neighbours."""

    def far(n):
        return (torch.arange(n)[:, None] - torch.arange(n)).abs() > REACH

    def masked(_, args, options):
        args = list(args)
        mask = args.pop(1) if len(args) > 1 else options.get("attention_mask")
        n = args[0].shape[1] if args else options["hidden_states"].shape[1]
        if mask is None:
            mask = torch.zeros(1, 1, n, n, dtype=torch.float64)
        if mask.is_floating_point():
            mask = mask.expand(-1, -1, n, n).masked_fill(far(n), -1e30)
        else:
            mask = mask * ~far(n)
        if len(args) < 1 or "attention_mask" in options:
            return tuple(args), {**options, "attention_mask": mask}
        return (args[0], mask, *args[1:]), options

    for one in attentions(model):
        if hasattr(one, "compute_bias"):  # WavLM's masks are those of tokens

            def biased(n, m, own=one.compute_bias):
                return own(n, m).masked_fill(far(n), -1e30)

            one.compute_bias = biased
        else:
            one.register_forward_pre_hook(masked, with_kwargs=True)
    return run(model, inputs)


def with_formula(model, inputs, real, mixers):
    """Outputs of the model with ``fnet`` or ``spectral`` in place of its attention."""

    def mix(mixer, x):
        if isinstance(mixer, flashmix.mixers.FNet):
            return torch.fft.fft2(x).real
        spectrum = torch.fft.rfft(x, dim=0)
        kept = torch.zeros_like(spectrum)
        kept[:MODES] = spectrum[:MODES] * torch.view_as_complex(mixer.weight.detach())
        return torch.fft.irfft(kept, n=len(x), dim=0) + mixer.bias.detach()

    def replaced(module, args, options, output, mixer):
        x = args[0] if args else options["hidden_states"]
        y = torch.zeros_like(x)
        for row in range(len(x)):
            seen = slice(None) if real is None else real[row]
            y[row, seen] = mix(mixer, x[row, seen])
        last = getattr(module, "o", getattr(module, "out_proj", torch.nn.Identity()))
        return (last(y), *output[1:])

    for one, mixer in zip(attentions(model), mixers, strict=True):
        hook = functools.partial(replaced, mixer=mixer)
        one.register_forward_hook(hook, with_kwargs=True)
    return run(model, inputs)


@each_adapted
@pytest.mark.parametrize("mixer", ["attention", *MIXERS])
def test_an_adapted_model_mixes_as_its_own_code_would(name, mixer):
    family = FOUND[name]
    inputs, real = batch(family)
    model = family.encoder(swapped(family, MIXERS.get(mixer, mixer)))
    plain = copy.deepcopy(family.encoder(original(family)))
    adapters = [one for one in model.modules() if isinstance(one, Adapter)]
    assert adapters
    with torch.no_grad():
        if mixer == "attention":
            want = run(plain, inputs)
        elif mixer == "local":
            want = with_band(plain, inputs)
        else:
            want = with_formula(plain, inputs, real, [one.mixer for one in adapters])
        got = run(model, inputs)
    torch.testing.assert_close(
        at_real_tokens(got, real), at_real_tokens(want, real), atol=1e-5, rtol=1e-5
    )


def test_relative_positions_train_where_a_layer_reads_them_and_no_longer():
    family = FOUND["DeBERTa-v2, DeBERTa-v3"]
    for mixers, trains in (("fnet,attention", True), ("fnet", False)):
        model = swapped(family, mixers)
        for path in ("encoder.rel_embeddings", "encoder.LayerNorm"):
            assert model.get_submodule(path).weight.requires_grad == trains
    model = swapped(FOUND["WavLM"], "fnet,local")
    layers = model.encoder.layers
    assert layers[0].attention.rel_attn_embed.weight.requires_grad  # layer 1 has them from there
    assert not layers[0].attention.gru_rel_pos_const.requires_grad
    assert layers[1].attention.gru_rel_pos_const.requires_grad


def test_what_an_adapter_does_not_take_is_refused():
    deberta = swapped(FOUND["DeBERTa-v2, DeBERTa-v3"], "attention")
    tokens, pairs = torch.zeros(1, 3, 16, dtype=torch.float64), torch.ones(1, 1, 3, 3).tril()
    attention = next(one for one in deberta.modules() if isinstance(one, Adapter))
    with pytest.raises(ModelError, match="attention_mask holds more than padding"):
        attention(tokens, pairs, rel_embeddings=deberta.encoder.rel_embeddings.weight)
    with pytest.raises(ModelError, match="query_states"):
        attention(tokens, pairs, query_states=tokens)
    rembert = swapped(FOUND["RemBERT"], "attention")
    attention = next(one for one in rembert.modules() if isinstance(one, Adapter))
    with pytest.raises(ModelError, match="cross-attention"):
        attention(tokens, None, tokens)
    with pytest.raises(ModelError, match="no attention weights"):
        attention(tokens, output_attentions=True)
    with pytest.raises(ModelError, match="topk cannot take"):
        swapped(FOUND["DeBERTa"], "topk")
