"""A swapped model without padding in its layers gives what it gives with it, gradients too."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

import flashmix
from flashmix.errors import ArgumentError, ModelError
from flashmix.hf import pool_mean
from flashmix.hf.real_tokens import RealTokens
from helpers import assert_close, randn
from hf_models import COMMON, MIXERS, classifier, reviews, swapped, transformers

MASK = torch.tensor(
    [
        [1] * 11,
        [1] * 4 + [0] * 7,  # padding at the right
        [0] * 3 + [1] * 8,  # at the left
        [0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 1],  # in between
        [0] * 11,
        [1] + [0] * 10,
    ]
)
REAL = MASK.bool()
FIRST = [0, 1, 5]
"""Rows whose first token, which heads read, is real."""

FAMILIES = [
    *[("bert", mixers) for mixers in MIXERS],
    *[("distilbert", f"{mixers},fnet") for mixers in ("attention", "topk(topk=3)")],
    *[("electra", f"{mixers},fourier") for mixers in ("attention", "local(window=5)")],
    *[("albert", mixers) for mixers in ("attention", "spectral(modes=3)")],
]


def unpadded(model: nn.Module, on: bool = True) -> nn.Module:
    """A copy of a swapped model without padding in its layers."""
    return flashmix.swap(copy.deepcopy(model), {}, unpad=on)


def stack_of(model: nn.Module) -> nn.ModuleList:
    """The list of the model's layers."""
    return next(one for one in model.modules() if isinstance(one, nn.ModuleList))


def shapes_in(model: nn.Module) -> set[tuple[int, ...]]:
    """What fills with the shapes, but for the width, of what linear maps in layers get."""
    seen: set[tuple[int, ...]] = set()
    for module in stack_of(model).modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(lambda _, args, __: seen.add(args[0].shape[:-1]))
    return seen


def embeds(name: str = "bert") -> Tensor:
    return randn(*MASK.shape, 8 if name in ("electra", "albert") else 16)


def hidden(model: nn.Module, x: Tensor, mask: Tensor | None = MASK) -> Tensor:
    return model(inputs_embeds=x, attention_mask=mask).last_hidden_state


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Hidden states at real tokens, and the gradients of input and layers for a seeded upstream."""
    x = x.clone().requires_grad_()
    y = hidden(model, x)
    model.zero_grad()
    (y * randn(*y.shape, seed=7))[REAL].sum().backward()
    leaves = [p.grad for _, p in sorted(stack_of(model).named_parameters())]
    assert x.grad is not None
    return [y[REAL].detach(), x.grad[REAL], *(g for g in leaves if g is not None)]


def assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    for one, other in zip(got, want, strict=True):  # the gradient of a key's bias is zero
        assert float((one - other).norm()) <= 1e-10 * (1 + float(other.norm()))


@pytest.mark.parametrize(("name", "mixers"), FAMILIES)
def test_values_and_gradients_are_those_with_padding(name, mixers):
    padded = swapped(mixers, name).base_model.double()
    model, x = unpadded(padded), embeds(name)
    seen = shapes_in(model)
    got = results(model, x.masked_fill(~REAL[..., None], torch.nan))
    assert seen == {(1, int(MASK.sum()))}
    want = results(padded, x)
    assert len(want) > 10
    assert_same(got, want)
    with torch.no_grad():
        y = hidden(model, x)
    assert y.isfinite().all()
    assert not y[~REAL].any()


@pytest.mark.parametrize("mixers", MIXERS)
def test_a_neighbour_of_nan_changes_no_other_sequence(mixers):
    model, rest = unpadded(swapped(mixers).base_model.double()), [0, 1, 3, 5]

    def run(x: Tensor) -> list[Tensor]:
        x.requires_grad_()
        y = hidden(model, x)[rest]
        y.square().sum().backward()
        assert x.grad is not None
        return [y, x.grad[rest]]

    want, x = run(embeds()), embeds()
    x[2] = torch.nan
    for got, other in zip(run(x), want, strict=True):
        assert torch.equal(got, other)


HEADS = {
    "sequence": ("bert", "ForSequenceClassification", FIRST),
    "distilbert": ("distilbert", "ForSequenceClassification", FIRST),
    "tokens": ("bert", "ForTokenClassification", REAL),
    "vocabulary": ("electra", "ForMaskedLM", REAL),
    "span": ("distilbert", "ForQuestionAnswering", REAL),
    "mean": ("bert", "ForSequenceClassification", [0, 1, 2, 3, 5]),
}


@pytest.mark.parametrize("head", HEADS)
def test_heads_give_what_the_vanilla_model_gives(head):
    name, kind, rows = HEADS[head]
    model = classifier(name, kind, num_labels=2).double()
    model = pool_mean(model) if head == "mean" else model
    ids = reviews(11, 11, 11, 11, 11, 11)["input_ids"]
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=MASK)[0]
        got = flashmix.swap(model, "attention", unpad=True)(input_ids=ids, attention_mask=MASK)[0]
    assert_close(got[rows], want[rows], 1e-11)


@pytest.mark.parametrize("asked", ["before", "by call", "by config"])
@pytest.mark.parametrize("name", ["bert", "albert"])
def test_hidden_states_of_all_layers_are_padded(name, asked):
    padded = swapped("attention", name).double()
    batch = reviews(11, 4, 7)
    real = batch["attention_mask"].bool()
    if asked == "before":  # a hook that transformers leaves sees layers before ours do
        padded(**batch, output_hidden_states=True)
    model, options = unpadded(padded), {"output_hidden_states": True}
    if asked == "by config":
        model.config.output_hidden_states, options = True, {}
    with torch.no_grad():
        want = padded(**batch, output_hidden_states=True).hidden_states
        got = model(**batch, **options).hidden_states
    assert len(got) == len(want) == 3
    for one, other in zip(got, want, strict=True):
        assert_close(one[real], other[real], 1e-11)
        assert not one[~real].any()


@pytest.mark.parametrize("additive", [False, True])
def test_a_callers_own_mask_of_four_axes_is_read_anew_each_time(additive):
    model, x = unpadded(swapped("attention,fnet").base_model.double()), embeds()
    seen = shapes_in(model)
    four = torch.empty(6, 1, 1, 11, dtype=torch.float64 if additive else torch.bool)
    with torch.no_grad():
        for mask in (MASK, MASK.roll(1, 1), torch.ones_like(MASK)):
            four.copy_((mask[:, None, None, :] - 1) * 1e9 if additive else mask[:, None, None, :])
            assert_close(hidden(model, x, four), hidden(model, x, mask), 1e-11)
    assert (1, MASK.numel()) in seen
    with pytest.raises(ModelError, match=r"adds values|\[6, 1, 11, 11\]"):
        hidden(model, x, four - 0.5 if additive else four.expand(6, 1, 11, 11))


def test_layers_with_a_mask_of_the_models_own_get_real_tokens():
    torch.manual_seed(0)
    model = transformers.LayoutLMModel(transformers.LayoutLMConfig(**COMMON)).eval().double()
    batch = reviews(11, 4, 7)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        want = model(**batch).last_hidden_state
        flashmix.swap(model, "attention", unpad=True)
        seen = shapes_in(model)
        got = model(**batch).last_hidden_state
    assert_close(got[real], want[real], 1e-11)
    assert seen == {(1, 22)}


def test_where_nothing_is_padded_or_all_is_the_padded_form_runs():
    padded = swapped("attention,fnet").base_model.double()
    model, x = unpadded(padded), embeds()
    seen = shapes_in(model)
    with torch.no_grad():
        for mask, rows in ((None, 6), (torch.ones_like(MASK), 6), (torch.zeros_like(MASK), 6)):
            assert torch.equal(hidden(model, x, mask), hidden(padded, x, mask))
            assert seen == {(rows, 11)}
        for one in (x[:1], x[1:2, :4]):  # a batch of one, which is as long as itself
            assert torch.equal(hidden(model, one, None), hidden(padded, one, None))
        assert_close(
            hidden(model, x[1:2], MASK[1:2])[:, :4], hidden(model, x[1:2, :4], None), 1e-11
        )


@pytest.mark.parametrize("impl", ["attention", "attention(impl=naive)"])
def test_dropout_of_attention_weights_acts_within_sequences(impl):
    padded = swapped(impl, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0).base_model
    padded = padded.double().train()
    model, x = unpadded(padded), embeds()
    found = []
    for one in (padded, model, unpadded(padded).eval()):
        torch.manual_seed(0)
        found.append(hidden(one, x)[:2][REAL[:2]].detach())
    # The same weights are dropped: the longest sequence is as long as the padded batch.
    assert_close(found[1], found[0], 1e-11)
    assert not torch.allclose(found[1], found[2])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(reentrant):
    model = unpadded(swapped("attention,fnet").base_model.double()).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = embeds()
    want = results(model.eval(), x)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same(results(model.train(), x), want)


def test_a_layer_that_raises_leaves_nothing_behind():
    model, x = unpadded(swapped("attention,fnet").base_model.double()), embeds()
    with torch.no_grad():
        want = hidden(model, x)
        for where in (stack_of(model)[0], stack_of(model)[1].intermediate):
            hook = where.register_forward_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                hidden(model, x)
            hook.remove()
            assert torch.equal(hidden(model, x, None), hidden(unpadded(model, False), x, None))
            assert torch.equal(hidden(model, x), want)


def test_threads_do_not_meet():
    model, x = unpadded(swapped("fnet").base_model.double()), embeds()
    masks = [MASK.roll(shift, 0) for shift in range(6)]
    found: dict[int, Tensor] = {}

    def run(index: int) -> None:
        with torch.no_grad():
            found[index] = hidden(model, x, masks[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        assert all(torch.equal(found[index], hidden(model, x, masks[index])) for index in found)
    assert len(found) == 6


def test_padding_stays_in_graphs_and_transforms():
    padded = swapped("attention,fnet").base_model.double()
    model, x = unpadded(padded), embeds()
    with torch.no_grad():
        want = hidden(padded, x)
    seen = shapes_in(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(hidden(compiled, x), want, 1e-11)
    got, want = (torch.func.grad(lambda x, m=m: hidden(m, x).sum())(x) for m in (model, padded))
    assert torch.equal(got, want)
    assert seen == {tuple(MASK.shape)}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_trace_keeps_padding():
    model = unpadded(swapped("attention,local(window=5)").base_model.double())
    model.config.return_dict = False
    ids, mask = reviews(9, 4).values()
    traced = torch.jit.trace(model, (ids, mask), check_trace=False)
    other = mask.flip(0)
    with torch.no_grad():
        got, want = (one(ids, other)[0][other.bool()] for one in (traced, model))
    assert_close(got, want, 1e-11)


def test_a_copy_and_a_state_dict_are_as_ever():
    padded = swapped("attention,spectral(modes=3)").base_model.double()
    model, x = unpadded(padded), embeds()
    assert list(model.state_dict()) == list(padded.state_dict())
    twin = copy.deepcopy(model)
    twin.load_state_dict(padded.state_dict())
    flashmix.swap(model, {}, unpad=False)
    seen, seen_in_twin = shapes_in(model), shapes_in(twin)
    with torch.no_grad():
        assert_close(hidden(twin, x)[REAL], hidden(model, x)[REAL], 1e-11)
    assert seen == {tuple(MASK.shape)}
    assert seen_in_twin == {(1, int(MASK.sum()))}


@pytest.mark.parametrize("part", ["", "bert"])
def test_a_saved_model_is_unpadded_again(part, tmp_path):
    model = classifier().double()
    flashmix.swap(model.get_submodule(part), "fnet,attention", unpad=True)
    model.save_pretrained(tmp_path / "saved")
    batch = reviews(11, 4)
    for kind in (None, "AutoModelForTokenClassification"):
        again = flashmix.from_pretrained(tmp_path / "saved", kind)
        seen = shapes_in(again)
        with torch.no_grad():
            got = again(**batch).logits
        assert seen == {(1, 15)}
        assert flashmix.swap_report(again.get_submodule(part)).unpad
        if kind is None:
            with torch.no_grad():
                assert_close(got, model(**batch).logits, 1e-12)


def test_a_record_of_unpad_that_is_none_is_refused(tmp_path):
    model = flashmix.swap(classifier(), "fnet", unpad=True)
    model.config.flashmix = {**model.config.flashmix, "unpad": "no"}
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="broken entry 'flashmix'"):
        flashmix.from_pretrained(tmp_path)


def test_a_second_swap_keeps_or_changes_it():
    model = flashmix.swap(classifier().base_model.double(), "attention", unpad=True)
    report = flashmix.swap_report(model)
    assert report.unpad
    assert "padding is removed before the first layer" in str(report)
    for options, on in (
        ({}, True),
        ({"unpad": False}, False),
        ({}, False),
        ({"unpad": True}, True),
    ):
        kept = stack_of(model)[0].attention.self.mixer
        flashmix.swap(model, {1: "fnet"}, **options)
        seen = shapes_in(model)
        hidden(model, embeds())
        assert seen == {(1, int(MASK.sum())) if on else tuple(MASK.shape)}
        assert flashmix.swap_report(model).unpad is on
        assert model.config.flashmix.get("unpad", False) is on
        assert stack_of(model)[0].attention.self.mixer is kept


class NormsBetween(transformers.BertModel):
    """Does something of its own with the hidden states between two layers."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder.forward = self._encode

    def _encode(self, x, attention_mask=None, **options):
        for layer in self.encoder.layer:
            x = layer(x * 1.01, attention_mask)
        return transformers.modeling_outputs.BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=x
        )


class Shifts(nn.Module):
    def forward(self, x):
        return x + x.roll(1, 1)


def with_shift(model):
    """A model whose layers reach across tokens beside their attention."""
    for layer in model.encoder.layer:
        layer.output.dropout = Shifts()
    return model


class Rotates(nn.Linear):
    """Rotates what it makes of a token by its place in the tensor, which it counts itself."""

    def forward(self, x):
        y = super().forward(x).unflatten(-1, (-1, 2))
        turn = torch.polar(torch.ones(()), 0.5 * torch.arange(x.shape[1]).float())[:, None]
        turned = torch.view_as_complex(y.contiguous()) * turn.to(y.dtype.to_complex())
        return torch.view_as_real(turned).flatten(-2)


def with_rotations(model):
    """Only distances within a sequence matter, which gaps alone change."""
    for layer in model.encoder.layer:
        for part in (layer.attention.self.query, layer.attention.self.key):
            part.__class__ = Rotates
    return model


def with_convolution(model):
    model.encoder.layer[1].output.extra = nn.Conv1d(16, 16, 3)
    return model


def bert(**options):
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**COMMON, **options)).eval()


def sound(**options):
    torch.manual_seed(0)
    config = {k: COMMON[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    return transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(
            **config, intermediate_size=32, conv_dim=(8,), conv_stride=(5,), conv_kernel=(10,),
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, **options,
        )
    ).eval()  # fmt: skip


def siglip():
    return transformers.SiglipTextModel(
        transformers.SiglipTextConfig(**COMMON, pad_token_id=1)
    ).eval()


REFUSED = {
    "relative positions": (lambda: classifier("mpnet"), "relative positions to its scores"),
    "no padding": (lambda: classifier("vit"), "no padding came to its layers"),
    "between layers": (lambda: NormsBetween(bert().config), "not what the layer before gave"),
    "across tokens": (lambda: with_shift(bert()), r"without padding its \S+ differs"),
    "own positions": (
        lambda: with_rotations(bert()),
        r"without padding between real tokens its \S+ differs",
    ),
    "convolution": (lambda: with_convolution(bert()), r"extra \(Conv1d\).*across tokens"),
    "layer drop": (sound, r"config\.layerdrop = 0\.1.*set that to 0"),
    "head reads padding": (siglip, "without padding its pooler_output differs"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_unpadded_is_refused_before_anything_changes(why):
    build, words = REFUSED[why]
    model = build()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(ModelError, match=f"cannot be unpadded: .*{words}.*unpad=False"):
        flashmix.swap(model, "attention", unpad=True)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(hasattr(module, "mixer") for module in model.modules())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    flashmix.swap(model, "attention", unpad=False)
    with pytest.raises(ModelError, match=words):
        flashmix.swap(model, {}, unpad=True)
    assert not flashmix.swap_report(model).unpad


def test_what_layers_get_beside_hidden_states_is_of_real_tokens():
    lengths = REAL.sum(1, dtype=torch.int32)
    real = RealTokens(REAL, lengths, lengths.tolist())
    own, shared = randn(6, 11, 2), randn(1, 11, 2, seed=1)
    assert torch.equal(real.take(own)[0], own[REAL])
    assert torch.equal(real.take(shared)[0], shared.expand_as(own)[REAL])
    assert torch.equal(real.put_back(real.take(own)), own.masked_fill(~REAL[..., None], 0.0))
    assert real.take_once(own) is real.take_once(own)
    for other in (own[:2], own[:, :4], own[0]):
        with pytest.raises(ModelError, match=r"expected \[6, 11, ...\]"):
            real.take(other)


def test_sounds_are_unpadded_without_layer_drop():
    model = flashmix.swap(sound(layerdrop=0.0), "attention").double()
    waves, mask = randn(2, 100), torch.tensor([[1] * 100, [1] * 57 + [0] * 43])
    without = unpadded(model)
    with torch.no_grad():
        want, got = (m(waves, attention_mask=mask).last_hidden_state for m in (model, without))
    frames = int(model._get_feat_extract_output_lengths(torch.tensor(57)))
    assert_close(got[0], want[0], 1e-11)
    assert_close(got[1, :frames], want[1, :frames], 1e-11)


def test_what_unpad_is_must_be_said_plainly():
    with pytest.raises(ArgumentError, match="unpad"):
        flashmix.swap(classifier(), "fnet", unpad=1)
    full = {key: value[:1] for key, value in reviews(9, 4).items()}
    with pytest.raises(ModelError, match=r"no padding came to its layers.*example="):
        flashmix.swap(classifier(), "fnet", example=full, unpad=True)
    flashmix.swap(classifier(), "fnet", example=reviews(9, 4), unpad=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waits of the host need a GPU")
@pytest.mark.parametrize("mixers", ["attention", "fnet", "spectral", "local", "fourier"])
def test_the_host_waits_at_most_once(mixers):
    model = unpadded(swapped(mixers).base_model.cuda())
    x, mask = embeds().float().cuda(), MASK.cuda()
    hidden(model, x, mask)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hidden(model, x, mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(one.message) for one in caught) <= 1
