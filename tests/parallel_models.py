"""What ranks do with models and with users' subclasses; see ``parallel_cases``."""

from __future__ import annotations

import copy
import inspect

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import recipe
from flashmix import create_mixer, parallel
from flashmix.mixers import MIXERS, FNet, TopKAttention, parse_mixer
from flashmix.models import Encoder, SequenceClassifier, TextClassifier
from flashmix.ops import fnet
from helpers import make_mixer, randn
from parallel_cases import MESHES, _errors, _relative, mine, seeded

PATTERN = "fnet,attention,spectral+local(window=5),fourier"


class Tied(torch.nn.Module):
    """Two filters and a layer, of which one filter shares its bias with the layer."""

    def __init__(self, text):
        super().__init__()
        self.mixers = torch.nn.ModuleList(create_mixer(text, 8) for _ in range(2))
        self.layer = torch.nn.Linear(8, 8)
        with torch.no_grad():
            self.layer.bias.normal_()
        self.mixers[1].bias = self.layer.bias

    def forward(self, x, mask):
        return self.mixers[1](self.layer(self.mixers[0](x, mask)), mask)


def errors_of_tied(text, counts):
    """As :func:`errors_of_mixer`, for :class:`Tied`."""
    x, upstream = randn(2, sum(counts), 8, seed=1), randn(2, sum(counts), 8, seed=2)
    sharded = parallel.shard_sequence(seeded(Tied, text), MESHES[len(counts)])
    return _errors(seeded(Tied, text), sharded, x, upstream, None, mine(counts))


def encoder():
    return seeded(Encoder, 8, 4, PATTERN, num_heads=2)


def errors_of_encoder(counts, batch, mask, recompute=False):
    """As :func:`errors_of_mixer`, for an encoder of four kinds of layers."""
    n, sharded = sum(counts), parallel.shard_sequence(encoder(), MESHES[len(counts)])
    x, upstream = randn(batch, n, 8, seed=1), randn(batch, n, 8, seed=2)
    if recompute:
        for block in sharded.blocks:
            forward = block.forward
            block.forward = lambda *a, f=forward: checkpoint(f, *a, use_reentrant=False)
    return _errors(encoder(), sharded, x, upstream, torch.tensor(mask), mine(counts))


def errors_of_classifier(kind, counts, mask):
    """Of logits, loss and parameters' gradients; ``kind`` "sequence" or "text"."""
    own, n, batch = mine(counts), sum(counts), len(mask)
    mask, labels = torch.tensor(mask), torch.arange(batch) % 3

    def make():
        options = {"dim": 8, "depth": 2, "mixers": "attention,fnet", "num_heads": 2}
        if kind == "sequence":
            return seeded(SequenceClassifier, 5, n + 2, 3, **options)
        return seeded(TextClassifier, 11, n + 2, 3, **options)

    tokens = (
        randn(batch, n, 5) if kind == "sequence" else torch.arange(batch * n).view(batch, n) % 11
    )
    whole, sharded = make(), parallel.shard_sequence(make(), MESHES[len(counts)])
    want, got = whole(tokens, mask), sharded(tokens[:, own], mask[:, own])
    for logits in (want, got):
        F.cross_entropy(logits, labels).backward()
    theirs = dict(sharded.named_parameters())
    pairs = {name: (theirs[name].grad, p.grad, p.grad) for name, p in whole.named_parameters()}
    pairs["logits"] = (got, want, want)
    return {name: _relative(*pair) for name, pair in pairs.items()}


def errors_of_both_dimensions(wrapper):
    """Two ranks share sequences, two pairs see different ones; DDP or FSDP2 joins the pairs."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))
    x, upstream = randn(4, 10, 8, seed=1), randn(4, 10, 8, seed=2)
    whole = encoder()
    (whole(x) * upstream).sum().backward()

    sharded = parallel.shard_sequence(encoder(), mesh["sequence"], sum_gradients=wrapper == "ddp")
    ranks = 2
    if wrapper == "ddp":
        sharded = DistributedDataParallel(sharded, process_group=mesh["data"].get_group())
    else:
        ranks = 4
        for block in sharded.blocks:
            fully_shard(block, mesh=mesh._flatten("all"))
        fully_shard(sharded, mesh=mesh["all"])
    own = parallel.local_slice(10, mesh["sequence"])
    rows = slice(2 * mesh["data"].get_local_rank(), 2 * mesh["data"].get_local_rank() + 2)
    y = sharded(x[rows, own])
    (ranks * (y * upstream[rows, own]).sum()).backward()
    errors = {}
    for (name, want), got in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        grad = got.grad.full_tensor() if hasattr(got.grad, "full_tensor") else got.grad
        errors[name] = _relative(grad, want.grad, want.grad)
    return errors


def error_of_hugging_face(counts):
    """Largest difference of a swapped BERT's hidden states at real tokens."""
    from transformers import BertConfig, BertModel

    import flashmix

    def make():
        config = BertConfig(
            hidden_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=50,
            max_position_embeddings=64,
        )
        model = seeded(BertModel, config, add_pooling_layer=False).eval()
        flashmix.swap(model, "fnet,attention,spectral")
        return model.double()

    n, own = sum(counts), mine(counts)
    ids, mask = torch.arange(2 * n).view(2, n) % 50, torch.ones(2, n, dtype=torch.long)
    mask[0, n - 4 :], mask[1, :3] = 0, 0
    whole, sharded = make(), parallel.shard_sequence(make(), MESHES[len(counts)])
    with torch.no_grad():
        want = whole(input_ids=ids, attention_mask=mask).last_hidden_state
        got = sharded(
            input_ids=ids[:, own],
            attention_mask=mask[:, own],
            position_ids=torch.arange(n)[None, own],
        ).last_hidden_state
    return (got - want[:, own])[mask[:, own].bool()].abs().max().item()


def names_and_types(counts):
    """What a model is before and after: names of its state, and whether classes still hold."""
    model = encoder()
    kinds = {name: type(module) for name, module in model.named_modules()}
    before = list(model.state_dict())
    assert parallel.shard_sequence(model, MESHES[len(counts)]) is model
    assert all(isinstance(m, kinds[name]) for name, m in model.named_modules())
    return before, list(model.state_dict())


def first_ranks_values():
    """A parameter's sum on each rank, after each began with its own."""
    torch.manual_seed(dist.get_rank())
    mixer = parallel.shard_sequence(create_mixer("attention", 8), MESHES[4])
    return mixer.qkv.weight.sum().item()


def errors_of_spread_training(mixers, pooled):
    """Gradients of a batch spread over 2 x 2 processes against one process's, dropout off."""
    from flashmix.tasks.batches import Batch
    from flashmix.tasks.encoders import Classifier, classifier
    from flashmix.tasks.finetuning import PIXEL
    from flashmix.tasks.sequence import SpreadClassifier

    def make():
        return classifier("bert-tiny", mixers, 3, PIXEL, 0).double().eval()

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, PIXEL.size, (4, pooled), generator=generator)
    mask = torch.arange(pooled) < torch.tensor([[pooled], [pooled], [max(1, pooled - 3)], [2]])
    batch = Batch(ids, mask, torch.tensor([0, 1, 2, 0]))
    whole, spread = Classifier(make()), SpreadClassifier(make(), 2, "cpu")
    whole(batch).backward()
    summed = spread(batch.part(dist.get_rank() // 2, 2))
    summed.backward()
    # Some gradients are rounding alone (what a softmax does not feel): the largest is the scale.
    scale = max((p.grad for p in whole.parameters()), key=torch.linalg.vector_norm)
    errors = {}
    for (name, want), got in zip(whole.named_parameters(), spread.parameters(), strict=True):
        dist.all_reduce(got.grad)
        errors[name] = _relative(got.grad, want.grad, scale)
    return errors


def users(kind):
    """A user's subclass of a mixer class: a gain of its own before it, and twice its mixing."""

    class Users(kind):
        def __init__(self, dim, **options):
            super().__init__(dim, **options)
            self.gain = torch.nn.Parameter(torch.ones(dim))

        def forward(self, x, mask=None):
            return super().forward(x * self.gain, mask)

        if hasattr(kind, "mix"):

            def mix(self, *inputs):
                return 2 * super().mix(*inputs)

    Users.__init__.__signature__ = inspect.signature(kind.__init__)
    return Users


def errors_of_subclasses(texts, counts, copied=False):
    """By mixer: how far a user's subclass is from one device's, itself or a deep copy of it."""
    own, n, found = mine(counts), sum(counts), {}
    for text in texts if own is not None else ():
        name = parse_mixer(text).name
        kept, MIXERS[name] = MIXERS[name], users(MIXERS[name])
        try:
            whole, sharded = make_mixer(text, 8), make_mixer(text, 8)
        finally:
            MIXERS[name] = kept
        sharded = parallel.shard_sequence(sharded, MESHES[len(counts)])
        assert type(sharded) is type(whole)
        x, upstream = randn(2, n, 8, seed=1), randn(2, n, 8, seed=2)
        sharded = copy.deepcopy(sharded) if copied else sharded
        errors = _errors(
            whole, sharded, x, upstream, torch.arange(n) < torch.tensor([[n], [3]]), own
        )
        found |= {f"{text}: {name}": error for name, error in errors.items()}
    return found


class NoDiagonal(TopKAttention):
    """Another formula, of whole heads: it is what head exchange calls."""

    def mix_whole(self, q, k, v, mask):
        return super().mix_whole(q, k, v, mask) - v


def errors_of_own_formulas(counts):
    """As :func:`errors_of_subclasses`, for classes whose heads mix by a formula of their own."""
    own, n, found = mine(counts), sum(counts), {}
    kinds = (recipe.define(), NoDiagonal)
    del MIXERS["neighbours"]
    for kind in kinds if own is not None else ():
        whole, sharded = seeded(kind, 8, num_heads=2), seeded(kind, 8, num_heads=2)
        sharded = parallel.shard_sequence(sharded, MESHES[len(counts)])
        x, upstream = randn(2, n, 8, seed=1), randn(2, n, 8, seed=2)
        errors = _errors(
            whole, sharded, x, upstream, torch.arange(n) < torch.tensor([[n], [3]]), own
        )
        found |= {f"{kind.__name__}: {name}": error for name, error in errors.items()}
    return found


class OwnFormula(FNet):
    def mix_whole(self, x, mask):
        return x.cumsum(1)


class AroundMix(FNet):
    def forward(self, x, mask=None):
        return fnet(self.tokens(x, mask))


class LargestToken(SequenceClassifier):
    def pool(self, y, mask):
        return y.amax(1)


def subclass_amiss(name):
    """A subclass that would see the tokens of its slice alone."""
    make = {
        "OwnFormula": lambda: OwnFormula(8),
        "AroundMix": lambda: AroundMix(8),
        "LargestToken": lambda: LargestToken(8, 40, 3, dim=8),
    }[name]
    parallel.shard_sequence(make(), MESHES[4])(torch.zeros(1, 2, 8))
