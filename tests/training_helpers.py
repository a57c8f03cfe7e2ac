"""A vocabulary and reviews small enough to train on in a test, made without any download."""

from __future__ import annotations

import csv
import random
import shutil

import pytest

from flashmix.bench.training import running
from flashmix.bench.training.jobs import execute
from flashmix.ops import _build as build
from flashmix.ops._cpu import library

WORDS = {1: ["great", "lovely", "superb"], 0: ["awful", "dull", "dreadful"]}
COMMON = ["the", "film", "was", "a", "story", "of", "two", "people", "and", "their", "dog"]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """The folder of a tokenizer with BERT's special tokens and a word for each token."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *COMMON, *WORDS[0], *WORDS[1]]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("vocabulary")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return folder


def review(source, label):
    """Some words, of which a few tell the class."""
    words = [source.choice(COMMON) for _ in range(source.randint(3, 20))]
    for _ in range(3):
        words.insert(source.randrange(len(words)), source.choice(WORDS[label]))
    return " ".join(words)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """A folder of CSV files in the layout of the imdb task."""
    source = random.Random(0)
    folder = tmp_path_factory.mktemp("reviews")
    for split, count in (("train", 200), ("test", 80), ("unsup", 200)):
        with (folder / f"imdb_{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for index in range(count):
                writer.writerow([review(source, index % 2), index % 2])
    return folder


class InProcess:
    """A worker in this process, for where processes are not the subject."""

    def __init__(self, *_, **__):
        pass

    def emit(self, job, event, **fields):
        pass

    def run(self, job, limit):
        def emit(event, **fields):
            self.emit(job, event, **fields)

        yield {"result": execute(job, emit, lambda: False)}

    def stop(self):
        pass

    def kill(self):
        pass


@pytest.fixture
def in_process(monkeypatch):
    """Trainings run in this process."""
    monkeypatch.setattr(running, "Worker", InProcess)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder for caches; the native kernels are there, since building them takes a minute."""
    folder = tmp_path_factory.mktemp("cache")
    if library.missing() is None:
        (folder / "flashmix").mkdir(mode=0o700)
        for file in (build.library_path(), build._digest_of(build.library_path())):
            shutil.copy2(file, folder / "flashmix")
    return folder


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    """Tokens are cached in a folder of the tests' own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
