"""The data of the text tasks: where it is found, how it becomes tokens, batches and packed rows."""

from __future__ import annotations

import csv

import pytest
import torch

from flashmix.errors import ArgumentError, FlashmixError
from flashmix.tasks.batches import Labelled, MaskedBatches, TrainingBatches, derived_seed
from flashmix.tasks.metrics import score
from flashmix.tasks.text import load_examples
from flashmix.tasks.tokens import Special, Tokens, load_tokenizer, special_tokens, tokenise
from training_helpers import cache, own_cache, vocabulary  # noqa: F401

SPECIAL = Special(pad=0, cls=1, sep=2, mask=3, size=50)
TEXTS = {0: ["bad film", 'so "very" bad, really'], 1: ["good\nfilm", "fine"]}
FLAT = [(text, label) for label in (0, 1) for text in TEXTS[label]]


def write_csv(path, rows, header=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def folders(root):
    for split in ("train", "test"):
        for label, name in ((0, "neg"), (1, "pos")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index, text in enumerate(TEXTS[label]):
                (folder / f"{index}_7.txt").write_text(text)
    (root / "train" / "unsup").mkdir()
    (root / "train" / "unsup" / "0_0.txt").write_text("whatever")


def parquet(root):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    texts, labels = zip(*FLAT, strict=True)
    for split in ("train", "test"):
        pq.write_table(pa.table({"text": texts, "label": labels}), root / f"imdb_{split}.parquet")
    pq.write_table(pa.table({"text": ["whatever"]}), root / "imdb_unsup.parquet")


def comma(root):
    for split in ("train", "test"):
        write_csv(root / f"{split}.csv", FLAT)
    write_csv(root / "unsup.csv", [["whatever"]], header=("text",))


@pytest.mark.parametrize("layout", [folders, parquet, comma])
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_every_layout_holds_the_same_examples(layout, how, tmp_path, monkeypatch):
    layout(tmp_path)
    monkeypatch.setenv("FLASHMIX_DATA", str(tmp_path))
    data = tmp_path if how == "argument" else None
    for split in ("train", "test"):
        texts, labels = load_examples("imdb", split, data)
        assert list(zip(texts, labels, strict=True)) == FLAT
    assert load_examples("imdb", "unsupervised", data) == (["whatever"], None)


def test_a_folder_without_the_task_says_what_it_should_hold(tmp_path):
    with pytest.raises(ArgumentError, match=r"imdb_train or train with \.parquet or \.csv"):
        load_examples("imdb", "train", tmp_path)


@pytest.mark.parametrize(
    ("rows", "header", "complaint"),
    [
        ([["x", "2"]], ("text", "label"), "class from 0 to 1"),
        ([["x", "good"]], ("text", "label"), "class from 0 to 1"),
        ([["x", "1"]], ("words", "label"), "no column text or sentence"),
        ([["x", "1"]], ("text", "stars"), "no column label"),
    ],
)
def test_a_file_that_does_not_hold_the_task_is_refused(tmp_path, rows, header, complaint):
    write_csv(tmp_path / "train.csv", rows, header)
    with pytest.raises(FlashmixError, match=complaint):
        load_examples("imdb", "train", tmp_path)


def ragged(lengths):
    texts = [torch.arange(10, 10 + n, dtype=torch.int32) for n in lengths]
    return Tokens(torch.cat(texts), torch.tensor(lengths).cumsum(0))


def test_padding_frames_and_cuts_every_text():
    ids, lengths = ragged([3, 0, 5]).padded(6, SPECIAL)
    assert ids.tolist() == [[1, 10, 11, 12, 2, 0], [1, 2, 0, 0, 0, 0], [1, 10, 11, 12, 13, 2]]
    assert lengths.tolist() == [5, 2, 6]


def test_packing_loses_nothing_but_the_last_row():
    rows = ragged([3, 0, 5]).packed(5, SPECIAL)
    assert rows.tolist() == [[1, 10, 11, 12, 2], [1, 2, 10, 11, 12]]
    with pytest.raises(ArgumentError, match="do not fill one packed row"):
        ragged([3]).packed(9, SPECIAL)


def test_tokens_from_the_cache_are_those_of_the_tokenizer(vocabulary, own_cache):  # noqa: F811
    tokenizer = load_tokenizer(str(vocabulary))
    special = special_tokens(tokenizer)
    assert (special.pad, special.cls, special.sep, special.mask) == (0, 2, 3, 4)
    texts = ["the film was great", "", "a dull dog"]
    fresh, cached = tokenise(tokenizer, texts), tokenise(tokenizer, texts)
    assert torch.equal(fresh.ids, cached.ids)
    assert torch.equal(fresh.ends, cached.ends)
    words = tokenizer.convert_ids_to_tokens(fresh.ids.tolist())
    assert words == " ".join(texts).split()
    assert fresh.lengths.tolist() == [4, 0, 3]


def labelled(count=50):
    lengths = torch.randint(2, 12, (count,), generator=torch.Generator().manual_seed(0))
    ids = torch.where(torch.arange(11) < lengths[:, None], torch.arange(count)[:, None] + 4, 0)
    return Labelled(ids.int(), lengths, torch.arange(count))


def test_an_epoch_holds_every_example_once_and_another_order_follows():
    batches = TrainingBatches(labelled(), 8, seed=3)
    epochs = [
        torch.cat([batches(e * batches.per_epoch + i).target for i in range(batches.per_epoch)])
        for e in (0, 1)
    ]
    for one in epochs:
        assert sorted(one.tolist()) == list(range(50))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_a_step_has_the_same_batch_whenever_it_is_asked_for():
    first, second = (TrainingBatches(labelled(), 8, seed=3) for _ in range(2))
    list(map(first, range(20)))
    for step in (13, 2):
        assert torch.equal(first(step).ids, second(step).ids)


def test_batches_are_padded_to_their_longest_and_masked_only_then():
    data = labelled()
    batches = TrainingBatches(data, 8, seed=0)
    for step in range(batches.per_epoch):
        batch = batches(step)
        lengths = data.lengths[batch.target]
        assert batch.ids.shape[1] == lengths.max()
        if batch.mask is None:
            assert lengths.min() == lengths.max()
        else:
            assert torch.equal(batch.mask.sum(1), lengths)


def test_the_parts_of_a_batch_make_up_the_whole():
    batch = TrainingBatches(labelled(), 8, seed=0)(1)
    parts = [batch.part(rank, 3) for rank in range(3)]
    assert sorted(torch.cat([p.target for p in parts]).tolist()) == sorted(batch.target.tolist())


def test_masking_hides_a_fixed_share_and_keeps_what_stood_there():
    rows = torch.cat([torch.full((64, 1), 1), torch.randint(4, 50, (64, 40))], dim=1).int()
    batches = MaskedBatches(rows, SPECIAL, 64, seed=1)
    batch, again, other = batches(5), MaskedBatches(rows, SPECIAL, 64, seed=1)(5), batches(6)
    assert torch.equal(batch.ids, again.ids)
    assert not torch.equal(batch.places, other.places)
    assert batch.places.shape == (64, round(0.15 * 41))
    assert batch.places.min() > 0
    assert all(len(set(line)) == len(line) for line in batch.places.tolist())
    restored = batch.ids.scatter(1, batch.places, batch.target)
    assert sorted(restored.tolist()) == sorted(rows.tolist())
    hidden = (batch.ids.gather(1, batch.places) == SPECIAL.mask).float().mean()
    assert 0.7 < hidden < 0.9


def test_derived_seeds_differ():
    seeds = {derived_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900


def test_scores_agree_with_scikit_learn():
    sk = pytest.importorskip("sklearn.metrics")
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 4, generator=source)
    labels = torch.randint(4, (300,), generator=source)
    found, guess = score(logits, labels), logits.argmax(1)
    assert found.accuracy == pytest.approx(sk.accuracy_score(labels, guess))
    assert found.f1 == pytest.approx(sk.f1_score(labels, guess, average="macro"))
    assert found.confusion == sk.confusion_matrix(labels, guess).tolist()
    assert found.loss == pytest.approx(sk.log_loss(labels, logits.softmax(1)), rel=1e-5)
