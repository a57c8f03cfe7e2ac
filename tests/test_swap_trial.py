"""A model is tried with attention swapped in before anything is dropped, and is left as it was."""

from __future__ import annotations

import importlib
import random
import warnings

import numpy as np
import pytest
import torch

import flashmix
from flashmix.errors import ArgumentError, ModelError
from flashmix.hf.finding import find_layers
from hf_models import COMMON, TEXT, VISION, classifier, reviews, transformers

PLAIN = {key: value for key, value in COMMON.items() if key != "initializer_range"}
IMAGE = {key: VISION[key] for key in {*VISION} - {"vocab_size", "max_position_embeddings"}}


class Disagrees(transformers.BertModel):
    """Gives other outputs with another attention implementation than its own."""

    def forward(self, *args, **options):
        found = super().forward(*args, **options)
        if self.config._attn_implementation == "mixers":
            found.pooler_output = found.pooler_output * 1.01
        return found


REFUSED = {
    "clip text": (
        lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**PLAIN)),
        r"layers\.0\.self_attn is causal, and spectral sees later tokens",
    ),
    "owlvit text": (
        lambda: transformers.OwlViTTextModel(transformers.OwlViTTextConfig(**PLAIN)),
        r"layers\.0\.self_attn is causal, and spectral sees later tokens",
    ),
    "beit": (
        lambda: transformers.BeitModel(
            transformers.BeitConfig(**VISION, use_relative_position_bias=True)
        ),
        r"attention has a mask that adds to its scores \(relative positions.*spectral cannot take",
    ),
    "eomt": (
        lambda: transformers.EomtForUniversalSegmentation(
            transformers.EomtConfig(**IMAGE, num_queries=3, num_blocks=1)
        ),
        r"layers\.1\.attention has a mask that adds to its scores",
    ),
    "disagrees": (
        lambda: Disagrees(transformers.BertConfig(**COMMON)),
        r"Disagrees cannot be swapped.*its pooler_output differs \(by 0\.01",
    ),
}


def everything(model) -> dict[str, object]:
    """All that a trial could change, so that equality says it did not."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    parts = {
        path: (
            type(part),
            part.training,
            sorted(vars(part)),
            {key: list(value.items()) for key, value in vars(part).items() if "hooks" in key},
            list(part._modules),
        )
        for path, part in model.named_modules()
    }
    configs = {
        path: repr(sorted(vars(part.config).items(), key=str))
        for path, part in model.named_modules()
        if hasattr(part, "config")
    }
    pointers = {name: value.data_ptr() for name, value in model.named_parameters()}
    buffers = {name: (id(value), value.clone()) for name, value in model.named_buffers()}
    return {
        "state": state,
        "parts": parts,
        "configs": configs,
        "pointers": pointers,
        "buffers": buffers,
        "random": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1],
    }


def assert_untouched(model, before) -> None:
    now = everything(model)
    for what in ("parts", "configs", "pointers", "python"):
        assert now[what] == before[what], what
    for what in ("random", "numpy"):
        assert np.array_equal(now[what], before[what]), what
    assert now["state"].keys() == before["state"].keys()
    for key, value in now["state"].items():
        assert torch.equal(value, before["state"][key]), key
    assert now["buffers"].keys() == before["buffers"].keys()
    for key, (where, value) in now["buffers"].items():
        assert where == before["buffers"][key][0], key
        assert torch.equal(value, before["buffers"][key][1]), key


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_attention_cannot_stand_in_for_is_refused_before_anything_changes(name, mode):
    build, words = REFUSED[name]
    model = build().train(mode)
    next(model.children()).train(not mode)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    before = everything(model)
    with pytest.raises(ModelError, match=words):
        flashmix.swap(model, "spectral,local")
    assert_untouched(model, before)
    assert seen == [False] * len(seen)


class Remembers(transformers.BertModel):
    """Writes to itself, to its config and to a buffer whenever it is called, and uses chance."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, *args, **options):
        self.calls += 1
        self.last = torch.rand(3)
        self.config.seen = True
        self.register_buffer("noise", torch.rand(3))
        assert not any(module.training for module in self.modules())
        return super().forward(*args, **options)


def trial(model, example=None) -> None:
    """The trial alone, without the swap that follows."""
    swapping = importlib.import_module("flashmix.hf.swap")
    swapping._try(model, find_layers(model), True, example)


@pytest.mark.parametrize("name", [*TEXT, "vit", "remembers"])
def test_a_trial_leaves_the_model_and_the_random_state_as_they_were(name):
    if name == "remembers":
        model = Remembers(transformers.BertConfig(**COMMON))
    else:
        model = classifier(name)
    model.train()
    next(model.children()).eval()
    before = everything(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trial(model)
    assert_untouched(model, before)


def vision_with_shapes():
    options = {key: IMAGE[key] for key in {*IMAGE} - {"image_size", "initializer_range"}}
    config = transformers.Siglip2VisionConfig(**{**options, "patch_size": 2}, num_patches=16)
    return transformers.Siglip2VisionModel(config).eval()


PATCHES = {
    "pixel_values": torch.ones(2, 6, 12),
    "pixel_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
    "spatial_shapes": torch.tensor([[2, 3], [2, 2]]),
}


def test_a_model_of_unknown_inputs_is_swapped_with_a_warning_or_tried_with_an_example():
    with pytest.warns(UserWarning, match=r"Siglip2VisionModel could not be tried.*example="):
        flashmix.swap(vision_with_shapes(), "fnet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flashmix.swap(vision_with_shapes(), "fnet", example=PATCHES)
        flashmix.swap(vision_with_shapes(), "local")  # drops nothing, so nothing is at risk


def test_the_example_is_what_is_tried():
    model = classifier()
    with pytest.raises(ArgumentError, match=r"does not run on example.*ids"):
        flashmix.swap(model, "fnet", example={"ids": torch.ones(1, 3)})
    pairs = {"input_ids": reviews(9, 4)["input_ids"], "attention_mask": torch.ones(2, 9, 9)}
    with pytest.raises(ModelError, match=r"cannot be swapped.*\[2, 9, 9\]"):
        flashmix.swap(model, "fnet", example=pairs)
    assert not any(hasattr(part, "mixer") for part in model.modules())
    flashmix.swap(model, "fnet", example=reviews(9, 4))


def test_layers_that_may_be_cross_attention_are_not_swapped_untried():
    config = transformers.Blip2QFormerConfig(**COMMON, encoder_hidden_size=16)
    model = transformers.Blip2QFormerModel(config).eval()
    before = everything(model)
    with pytest.raises(
        ModelError, match=r"Blip2QFormerModel could not be tried.*crossattention.*example="
    ):
        flashmix.swap(model, "fnet")
    query = torch.ones(2, 5, 16)
    example = {"query_embeds": query, "encoder_hidden_states": query + 1}
    with pytest.raises(ModelError, match="this is cross-attention"):
        flashmix.swap(model, "fnet", example=example)
    assert_untouched(model, before)


def test_nothing_is_computed_on_the_meta_device():
    with torch.device("meta"):
        model = Disagrees(transformers.BertConfig(**COMMON))
        flashmix.swap(model, "fnet")
    assert flashmix.swap_report(model).dropped


def test_the_models_own_attention_may_be_a_mixer_by_name():
    model = classifier(attn_implementation=flashmix.register_attention("local(window=3)"))
    flashmix.swap(model, "fnet")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_of_any_type_is_tried(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flashmix.swap(classifier().to(dtype), "attention")
    with pytest.raises(ModelError, match="is causal"):
        flashmix.swap(REFUSED["clip text"][0]().to(dtype), "fnet")


SUBMODELS = {
    "CLIP": (
        lambda: transformers.CLIPModel(
            transformers.CLIPConfig(
                vision_config={k: v for k, v in IMAGE.items() if k != "initializer_range"},
                text_config=PLAIN,
            )
        ),
        ["text_model (CLIPTextModel)", "vision_model (CLIPVisionModel)"],
    ),
    "UMT5": (
        lambda: transformers.UMT5EncoderModel(
            transformers.UMT5Config(
                vocab_size=60, d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=32
            )
        ),
        ["encoder (UMT5Stack)"],
    ),
    "Bart": (
        lambda: transformers.BartModel(
            transformers.BartConfig(d_model=16, encoder_layers=1, decoder_layers=1)
        ),
        ["encoder (BartEncoder)"],
    ),
}


@pytest.mark.parametrize("name", SUBMODELS)
def test_a_refusal_names_the_submodels_that_may_be_swapped_and_no_others(name):
    build, parts = SUBMODELS[name]
    with pytest.raises(ModelError) as caught:
        flashmix.swap(build(), "attention")
    _, _, named = str(caught.value).partition("submodels that may be swapped instead: ")
    assert [part for part in named.split(", ") if part] == parts
    assert parts or "none of its submodels can be swapped either" in str(caught.value)
