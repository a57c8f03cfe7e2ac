"""Encoders: the layers shown are those that the model computes.

Shapes: B texts, N tokens, D width, H heads.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import flashmix
from flashmix.errors import ArgumentError, FlashmixError
from flashmix.visualize import encoder_subject
from flashmix.visualize.encoders import watched_layers
from helpers import assert_close

transformers = pytest.importorskip("transformers", reason="needs flashmix[hf]")

TEXTS = ["the cat sat on the mat", "a dog lay on the mat there"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *sorted(set(" ".join(TEXTS).split()))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A blank BERT of two layers with its tokenizer."""
    path = tmp_path_factory.mktemp("bert") / "tiny-bert"
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    save(transformers.BertModel(config()), path)
    return path


def config():
    return transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )


def save(model, path):
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)


def test_an_encoders_weights_are_those_it_computes(folder):
    subject = encoder_subject(folder, TEXTS)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, truncation=True, max_length=8)
    with torch.no_grad():
        result = model(
            torch.tensor(ids.input_ids), output_attentions=True, output_hidden_states=True
        )
    assert subject.shown.labels[:3] == ("[CLS]", "the", "cat")
    assert [layer.name for layer in subject.layers] == ["layer 1", "layer 2"]
    for i, layer in enumerate(subject.layers):
        assert layer.values.shape == (2, 4, 8, 4)
        assert_close(layer.weights, result.attentions[i][0], 1e-5)
        assert_close(layer.x, result.hidden_states[i], 1e-5)
        mixed = (result.attentions[i] @ layer.values).transpose(1, 2).flatten(2)
        assert_close(layer.y, mixed, 1e-5)


SMALL = {"vocab_size": 20, "num_attention_heads": 4, "max_position_embeddings": 32}
BERT_LIKE = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
KINDS = {
    "roberta": BERT_LIKE,
    "electra": {**BERT_LIKE, "embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_encoders_are_watched_as_they_compute(kind):
    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model(kind, **SMALL, **KINDS[kind])
    model = transformers.AutoModel.from_config(settings, attn_implementation="eager").eval()
    ids = torch.randint(5, 20, (2, 9))
    layers = watched_layers(model, lambda: model(input_ids=ids))
    with torch.no_grad():
        attentions = model(input_ids=ids, output_attentions=True).attentions
    assert len(layers) == len(attentions) == 2
    for layer, weights in zip(layers, attentions, strict=True):
        assert_close(layer.weights, weights[0], 1e-5)


def test_a_decoder_is_refused():
    settings = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2Model(settings).eval()
    with pytest.raises(ArgumentError, match="GPT2Model cannot be shown"):
        watched_layers(model, lambda: model(input_ids=torch.ones(1, 5, dtype=torch.long)))
    assert model.config._attn_implementation != "mixers_watched"


def test_its_pictures_name_its_tokens_and_layers(folder):
    found = {one.name: one for one in encoder_subject(folder, TEXTS).pictures()}
    assert set(found) == {"layer-1-weights", "layer-2-weights", "spectrum", "heads"}
    assert "layer 1, tiny-bert" in found["layer-1-weights"].title
    assert "a text (N = 8 tokens)" in found["layer-1-weights"].caption
    assert "[CLS]" in found["layer-1-weights"].svg()


def test_a_mixer_can_stand_on_an_encoders_hidden_states(folder):
    own, other = encoder_subject(folder, TEXTS), encoder_subject(folder, TEXTS, mixers="fnet")
    for before, after in zip(own.layers, other.layers, strict=True):
        assert torch.equal(before.x, after.x)
        assert_close(after.y, torch.fft.fft2(before.x.double()).real.float(), 1e-5)
    assert "hidden states of tiny-bert" in other.shown.weights


@pytest.mark.skipif(not hasattr(flashmix, "swap"), reason="flashmix.swap is not in this version")
@pytest.mark.parametrize("mixers", ["local(window=3),fourier", "spectral+attention", "fnet"])
def test_swapped_encoders_show_their_mixers(folder, tmp_path, mixers):
    model = flashmix.swap(transformers.AutoModel.from_pretrained(folder), mixers)
    save(model, tmp_path)
    subject = encoder_subject(tmp_path, TEXTS)
    assert len(subject.layers) == 2
    with torch.no_grad():
        for layer in subject.layers:
            if layer.weights is not None:
                mixed = (layer.weights @ layer.values[0]).transpose(0, 1).flatten(1)
                assert_close(mixed, layer.y[0], 1e-5)
            assert_close(layer.mix(layer.x), layer.y, 1e-5)
    names = {picture.name for picture in subject.pictures()}
    assert {"layer-1-influence", "layer-2-influence"} <= names
    if mixers == "fnet":
        assert "layer-1-impulse" in names
    elif mixers == "spectral+attention":
        assert {"layer-1-part-1-filter", "layer-1-part-2-weights", "spectrum"} <= names
    else:
        assert {"layer-1-weights", "layer-2-weights"} <= names


def test_what_is_no_encoder_of_text_is_refused(folder, tmp_path):
    with pytest.raises(ArgumentError, match="needs at least 9 tokens, got one of 8"):
        encoder_subject(folder, TEXTS, seq_len=9)
    with pytest.raises(FlashmixError, match="cannot be loaded as an encoder"):
        encoder_subject(tmp_path, TEXTS)


def test_a_published_encoder_attends_as_it_should():
    data = os.environ.get("FLASHMIX_DATA")
    path = Path(data or "") / "paraphrase-minilm-l3-v2"
    if not data or not path.is_dir():
        pytest.skip("needs paraphrase-minilm-l3-v2 in the folder that FLASHMIX_DATA names")
    subject = encoder_subject(path, ["the cat sat on the mat because it was warm"])
    assert [layer.weights.shape[0] for layer in subject.layers] == [12, 12, 12]
    for layer in subject.layers:
        assert_close(layer.weights.sum(-1), torch.ones(layer.weights.shape[:2]), 1e-5)
