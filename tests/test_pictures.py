"""Pictures: what is drawn is what was measured, and captions say it.

Shapes: B batch, N tokens, D width, H heads.
"""

from __future__ import annotations

import math
import struct
import xml.etree.ElementTree as ElementTree
import zlib

import pytest
import torch
from safetensors.torch import save_file

from flashmix import visualize
from flashmix.errors import ArgumentError, FlashmixError
from flashmix.mixers import Mixer
from flashmix.models import SequenceClassifier
from flashmix.visualize import drawing, theme
from flashmix.visualize.chart import compact_png
from flashmix.visualize.layers import mixer_layers
from helpers import MIXERS, assert_close, make_mixer, randn

N, DIM = 12, 8


def shown(text, given=None, **options):
    """The pictures of a mixer by name."""
    given = given or visualize.white_noise(N, DIM, count=3)
    subject = visualize.mixer_subject(text, given, dim=DIM, num_heads=2, **options)
    return {picture.name: picture for picture in subject.pictures()}


def cells(picture, name="cells"):
    return picture.spec()["datasets"][name]


def names(specification):
    """The names of the pictures that a mixer must have."""
    kind = specification.partition("(")[0]
    own = {
        "attention": {"weights"},
        "local": {"weights"},
        "topk": {"weights"},
        "fnet": {"impulse"},
        "spectral": {"impulse", "filter"},
        "fourier": {"weights", "gains"},
        "hybrid": set(),
    }[kind]
    heads = {"heads"} if own & {"weights"} else set()
    return {"influence", "spectrum"} | own | heads


@pytest.mark.parametrize("text", MIXERS)
def test_every_mixer_has_its_pictures(text):
    found = shown(text)
    assert names(text) <= set(found)
    for picture in found.values():
        assert picture.caption.endswith("Mixers are untrained (seed 0).")
        assert all(math.isfinite(value) for value in picture.measured.values())


def test_a_hybrid_shows_its_parts():
    found = shown("spectral(modes=3)+local(window=3)")
    assert {"part-1-filter", "part-1-impulse", "part-2-weights", "influence"} <= set(found)


def test_a_pattern_shows_each_layer():
    found = shown("fnet,attention*2", visualize.text_bytes(["to be or not to be"]))
    assert {"layer-1-impulse", "layer-2-weights", "layer-3-weights", "spectrum"} <= set(found)
    panels = {record["panel"] for record in cells(found["spectrum"], "lines")}
    assert panels == {"layer 1", "layer 2", "layer 3"}


def test_layers_with_different_numbers_of_heads_are_drawn_apart():
    found = shown("attention(num_heads=4),attention,fourier")
    assert {"heads-2", "heads-4"} <= set(found)
    assert "layer 2: " in found["heads-2"].caption
    assert "layer 2: " not in found["heads-4"].caption


@pytest.mark.parametrize("text", ["attention", "fnet", "spectral", "fourier"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_shortest_sequences_can_be_drawn(text, n):
    for picture in shown(text, visualize.white_noise(n, DIM)).values():
        assert all(math.isfinite(value) for value in picture.measured.values())
        assert picture.spec()["datasets"]


def test_a_heatmap_holds_the_matrix():
    matrix = randn(2, N, N).abs()
    records = drawing.heatmaps(matrix, ["a", "b"], what="weight").data["cells"]
    drawn = torch.zeros_like(matrix)
    for one in records:
        assert (one["x2"] - one["x"], one["y2"] - one["y"]) == (1, 1)
        drawn["ab".index(one["panel"]), int(one["y"]), int(one["x"])] = one["value"]
    assert_close(drawn, matrix, 1e-3)


def test_a_large_heatmap_holds_block_means_and_its_caption_says_so():
    picture = shown("attention", visualize.white_noise(300, DIM, count=1))["weights"]
    block = 300 // 90 + 1
    assert f"A cell is the mean of {block} x {block} entries." in picture.caption
    assert len(cells(picture)) == 2 * (300 // block) ** 2 <= drawing.MOST_CELLS
    total = sum(one["value"] for one in cells(picture)) * block**2
    assert total == pytest.approx(2 * 300, rel=1e-3)


@pytest.mark.parametrize(("n", "block"), [(12, 5), (13, 13), (5, 1)])
def test_block_means_keep_constants_and_means(n, block):
    means = drawing.block_means(torch.full((n, n), 3.0), block, block)
    assert_close(means, torch.full_like(means, 3.0))
    if n % block == 0:
        matrix = randn(n, n)
        assert_close(drawing.block_means(matrix, block, block).mean(), matrix.mean())


def test_captions_state_the_window_and_the_number_kept():
    local, topk = shown("local(window=4)")["weights"], shown("topk(topk=3)")["weights"]
    assert local.measured["share_within"] == pytest.approx(1)
    assert "A row has 3 to 5 weights above zero." in local.caption
    assert "100 % lies within 2 tokens to each side" in local.caption
    assert topk.measured["nonzero_per_row"] == 3
    assert "A row has 3 weights above zero." in topk.caption


def test_an_untrained_filter_is_called_untrained():
    picture = shown("spectral(modes=3)")["filter"]
    assert picture.caption.startswith("W = 1 throughout: nothing has been learned.")
    assert picture.measured["magnitude_std"] == 0
    trained = visualize.trained_subject(
        "spectral(modes=3)", visualize.digit_images(), steps=2, dim=DIM, num_heads=2
    )
    picture = next(one for one in trained.pictures() if one.name == "filter")
    assert "nothing has been learned" not in picture.caption
    assert "Trained on the digits for 2 steps (seed 0)" in picture.caption
    assert picture.measured["magnitude_std"] > 0


def test_white_noise_has_white_noise_s_share_in_the_lowest_tenth():
    picture = shown("fnet(norm=ortho)", visualize.white_noise(64, DIM, count=256))["spectrum"]
    # 256 x 8 x 5 independent energies: a standard deviation of 1.3 %.
    assert picture.measured["entering"] == pytest.approx(picture.measured["white_noise"], rel=0.06)


def test_frequencies_that_a_filter_drops_end_its_line():
    found = shown("spectral(modes=3)")["spectrum"]
    leaving = [one for one in cells(found, "lines") if one["label"] == "leaves"]
    assert max(one["frequency"] for one in leaving if "frequency" in one) == round(2 / N, 6)
    assert "Magnitudes below 0.01 % of the largest are not drawn." in found.caption


def test_real_images_are_held_out_digits_in_order():
    one, two = visualize.digit_images(64), visualize.digit_images(100)
    assert one.values.shape == (32, 64, 1)
    assert two.values.shape == (32, 100, 1)
    assert torch.equal(two.values[0, 64:, 0], one.values[1, :36, 0])
    with pytest.raises(ArgumentError, match="at most 23040 tokens are there, got 30000"):
        visualize.digit_images(30_000)


def test_text_is_its_bytes():
    given = visualize.text_bytes(["é a", "abcdef"])
    assert given.values.tolist() == [list("é a".encode()), list(b"abcd")]
    assert given.labels == ("·", "·", "·", "a")
    with pytest.raises(ArgumentError, match="needs at least 5 bytes, got one of 4"):
        visualize.text_bytes(["é a", "abcdef"], 5)


def test_text_from_a_user_stays_text():
    hostile = '</text><script>"]\\'
    picture = shown("attention", visualize.text_bytes([hostile]))["weights"]
    root = ElementTree.fromstring(picture.svg())
    assert not [one for one in root.iter() if one.tag.endswith("script")]
    assert {"<", ">", '"', "\\"} <= {(one.text or "").strip() for one in root.iter()}


def test_layers_hold_the_tokens_that_reach_their_mixers():
    torch.manual_seed(0)
    model = SequenceClassifier(1, N, 2, dim=DIM, depth=2, mixers="fnet,spectral+local").eval()
    x = randn(3, N, 1, dtype=torch.float32)
    layers = mixer_layers(model, lambda: model(x))
    assert [layer.name for layer in layers] == ["layer 1", "layer 2"]
    first = model.encoder.blocks[0].norm1(model.embed(x) + model.position)
    assert_close(layers[0].x, first, 1e-6)
    assert_close(layers[1].y, model.encoder.blocks[1].mixer(layers[1].x), 1e-6)


def test_compared_attentions_share_their_parameters():
    given = visualize.white_noise(N, DIM)
    picture = visualize.compare_weights(("attention", "topk(topk=12)"), given, dim=DIM)
    drawn = {name: {} for name in ("attention", "topk(topk=12)")}
    for one in cells(picture):
        drawn[one["panel"]][one["x"], one["y"]] = one["value"]
    assert drawn["attention"] == pytest.approx(drawn["topk(topk=12)"], rel=1e-3)
    with pytest.raises(ArgumentError, match="fnet has no attention weights to compare"):
        visualize.compare_weights(("attention", "fnet"), given, dim=DIM)


# Weights from a file


def test_weights_come_from_a_mixers_file_and_from_a_models(tmp_path):
    mixer = make_mixer("spectral(modes=3)", DIM, dtype=torch.float32)
    save_file(mixer.state_dict(), tmp_path / "one.safetensors")
    torch.manual_seed(7)
    model = SequenceClassifier(1, N, 2, dim=DIM, depth=2, mixers="spectral(modes=3)")
    for one in model.modules():
        if isinstance(one, Mixer):
            torch.nn.init.normal_(one.weight)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    given = visualize.digit_images(N)

    def loaded(text, name):
        subject = visualize.mixer_subject(text, given, dim=DIM, weights=tmp_path / name)
        assert name in subject.shown.weights
        return [layer.mixer.weight for layer in subject.layers]

    assert torch.equal(loaded("spectral(modes=3)", "one.safetensors")[0], mixer.weight)
    both = loaded("spectral(modes=3)*2", "model.safetensors")
    assert torch.equal(both[0], model.encoder.blocks[0].mixer.weight)
    assert torch.equal(both[1], model.encoder.blocks[1].mixer.weight)
    with pytest.raises(ArgumentError, match=r"weight \[5, 8, 2\].* has none, among weight \[3"):
        loaded("spectral(modes=5)", "one.safetensors")
    with pytest.raises(ArgumentError, match=r"1 x Spectral .* has 2 of them \(encoder.blocks.0"):
        loaded("spectral(modes=3)", "model.safetensors")


def test_many_layers_are_taken_in_the_order_of_their_numbers(tmp_path):
    text = "spectral(modes=1)*11"
    model = SequenceClassifier(1, N, 2, dim=2, depth=11, mixers=text)
    for i, block in enumerate(model.encoder.blocks):
        torch.nn.init.constant_(block.mixer.weight, i)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    subject = visualize.mixer_subject(
        text, visualize.digit_images(N), dim=2, weights=tmp_path / "model.safetensors"
    )
    assert [layer.mixer.weight[0, 0, 0].item() for layer in subject.layers] == list(range(11))


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(FlashmixError, match=r"broken\.safetensors is not a readable safetensors"):
        visualize.mixer_subject("fnet", visualize.digit_images(N), dim=DIM, weights=path)


# Files


def test_files_are_pictures_with_their_captions(tmp_path):
    picture = shown("local(window=4)")["weights"]
    svg, png = visualize.write_picture(picture, tmp_path)
    visualize.write_captions([picture], tmp_path, ("svg", "png"))
    root = ElementTree.fromstring(svg.read_text())
    text = " ".join("".join(one.itertext()) for one in root.iter() if one.tag.endswith("text"))
    assert picture.title in text
    assert "weights above zero" in text
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    assert width > 400
    assert height > 400
    assert picture.caption in (tmp_path / "pictures.md").read_text()
    assert "share_within" in (tmp_path / "measured.json").read_text()
    with pytest.raises(ArgumentError, match="did you mean 'svg'"):
        visualize.write_picture(picture, tmp_path, ("svgg",))


def test_dark_pictures_have_dark_paper():
    picture = shown("fnet")["influence"]
    assert theme.PAPER.light in picture.svg("light")
    dark = picture.svg("dark")
    assert theme.PAPER.dark in dark
    assert theme.INK.light not in dark


def test_a_compact_png_has_the_same_pixels():
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = bytes(range(256)) * 64
    header = struct.pack(">IIBBBBB", 63, 64, 8, 6, 0, 0, 0)
    loose = zlib.compress(rows, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    image += chunk(b"IDAT", loose[:100]) + chunk(b"IDAT", loose[100:]) + chunk(b"IEND", b"")
    small = compact_png(image)
    assert len(small) < len(image) / 10
    assert small.startswith(image[:33])
    assert small.endswith(chunk(b"IEND", b""))
    (length,) = struct.unpack(">I", small[33:37])
    assert zlib.decompress(small[41 : 41 + length]) == rows
