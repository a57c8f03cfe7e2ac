"""What the ranks of a test do; each function runs on every rank of a pool with the same arguments.

A sequence of the test lies over the first ranks, as many as ``counts`` has entries.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from flashmix import create_mixer, parallel
from flashmix.bench.memory import peak_mb
from flashmix.bench.ranks.traffic import SentBytes
from flashmix.errors import ImplementationError
from flashmix.models import Encoder, SequenceClassifier, TextClassifier
from flashmix.ops.block_topk_attention import blocks
from flashmix.ops.block_topk_attention import torch as block_topk
from flashmix.ops.local_attention import torch as local
from flashmix.parallel import sharded
from flashmix.parallel.attention import ring
from flashmix.parallel.comm import chunks
from flashmix.parallel.comm import ranks as comm_ranks
from flashmix.parallel.fnet import exchange
from flashmix.parallel.spectral import channels, modes
from helpers import by_reference, fresh_mixer, make_mixer, randn

MESHES: dict[int, DeviceMesh] = {}


def start() -> None:
    """Meshes over the first ranks, chunks so small that few tokens need several, NaN in memory."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for size in range(1, dist.get_world_size() + 1):
        MESHES[size] = DeviceMesh("cpu", list(range(size)))
    ring.MAX_SCORES["cpu"], modes.CHUNK_TOKENS["cpu"], exchange.WIDTH_CHUNK["cpu"] = 32, 5, 3
    modes.MAX_BATCHED_CHUNKS["cpu"] = 2
    chunks.MAX_CHUNKS["cpu"], chunks.MIN_CHUNK_BYTES["cpu"] = 3, 1
    channels.MIN_CHANNELS = exchange.MIN_COLUMNS = 1
    blocks.BLOCK = block_topk.BLOCK = local.MIN_BLOCK = 4


def seeded(make, *arguments, **keywords):
    """A model in float64 with the same parameters wherever it is made."""
    torch.manual_seed(0)
    return make(*arguments, **keywords).double()


def mine(counts: tuple[int, ...]) -> slice | None:
    """The tokens of this rank; None where it is not one of theirs."""
    rank = dist.get_rank()
    return slice(sum(counts[:rank]), sum(counts[: rank + 1])) if rank < len(counts) else None


def errors_of_mixer(text, counts, batch, heads, mask=None, dtype=torch.float64, dim=8):
    """How far output, input's gradient and parameters' gradients are from one device's."""
    own = mine(counts)
    if own is None:
        return {}

    def make():
        return make_mixer(text, dim, num_heads=heads, dtype=dtype)

    n = sum(counts)
    x, upstream = (
        randn(batch, n, dim, seed=1, dtype=dtype),
        randn(batch, n, dim, seed=2, dtype=dtype),
    )
    if mask is not None:
        mask = torch.tensor(mask, dtype=torch.bool).view(batch, n)
        x[~mask] = float("nan")
    return _errors(
        make(), parallel.shard_sequence(make(), MESHES[len(counts)]), x, upstream, mask, own
    )


def _errors(whole, sharded, x, upstream, mask, own):
    x = x.requires_grad_()
    want = whole(x, mask)
    (want * upstream).sum().backward()
    slice_x = x.detach()[:, own].clone().requires_grad_()
    got = sharded(slice_x, None if mask is None else mask[:, own])
    (got * upstream[:, own]).sum().backward()
    pairs = {"y": (got, want[:, own], want), "x": (slice_x.grad, x.grad[:, own], x.grad)}
    theirs = dict(sharded.named_parameters())
    for name, parameter in whole.named_parameters():
        want = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        pairs[name] = (theirs[name].grad, want, want)
    return {name: _relative(*pair) for name, pair in pairs.items()}


def second_derivatives_or_refusal(text, counts):
    """How far off they are where the gradient that comes in is constant, or the refusal."""
    own, n = mine(counts), sum(counts)
    if own is None:
        return None
    mixer = make_mixer(text, 8, num_heads=1)
    x, upstream, probe = (randn(1, n, 8, seed=seed) for seed in (1, 2, 3))

    def found(mixer, some):
        leaf = x[:, some].clone().requires_grad_()
        (first,) = torch.autograd.grad(mixer(leaf), leaf, upstream[:, some], create_graph=True)
        total = (first * probe[:, some]).sum() + 0 * leaf.sum()
        return torch.autograd.grad(total, leaf)[0]

    want = found(by_reference(mixer), slice(None))
    sharded = parallel.shard_sequence(make_mixer(text, 8, num_heads=1), MESHES[len(counts)])
    try:
        return _relative(found(sharded, own), want[:, own], want)
    except ImplementationError as error:
        return str(error)


def refusals_of_transforms(text, counts):
    """What a sharded mixer says in forward mode, and under ``torch.func``."""
    own = mine(counts)
    if own is None:
        return []
    sharded = parallel.shard_sequence(make_mixer(text, 8), MESHES[len(counts)])
    x = randn(1, sum(counts), 8)[:, own]
    said = []
    for run in (
        lambda: torch.func.jvp(sharded, (x,), (x,)),
        lambda: torch.func.grad(lambda x: sharded(x).sum())(x),
        lambda: torch.vmap(sharded)(x[None]),
    ):
        try:
            run()
            said.append("nothing")
        except ImplementationError as error:
            said.append(str(error))
    return said


def error_of_second_derivatives(text, counts):
    """How far the gradient of the input's gradient is from one device's."""
    own, n = mine(counts), sum(counts)
    if own is None:
        return {}
    x, upstream, probe = (randn(2, n, 8, seed=seed) for seed in (1, 2, 3))

    def found(mixer, some):
        leaf = x[:, some].clone().requires_grad_()
        weights = upstream[:, some].clone().requires_grad_()
        first = torch.autograd.grad(mixer(leaf).square(), leaf, weights, create_graph=True)
        return torch.autograd.grad(first, (leaf, weights), probe[:, some].contiguous())

    def make():
        return make_mixer(text, 8, num_heads=2)

    want = found(make(), slice(None))
    got = found(parallel.shard_sequence(make(), MESHES[len(counts)]), own)
    return {
        name: _relative(a, b[:, own], b)
        for name, a, b in zip(("x", "upstream"), got, want, strict=True)
    }


def _relative(got, want, scale):
    """|got - want| over the norm of the whole; NaN where they do not fit."""
    if got is None or got.shape != want.shape or got.dtype != want.dtype:
        return float("nan")
    error = (got.detach() - want.detach()).double().norm().item()
    return error / max(scale.detach().double().norm().item(), 1e-30)


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


def bytes_of_gradients(text, ranks, n, dim):
    """Payload of a backward's all-reduces in float32, the gradients of parameters among it."""
    if dist.get_rank() >= ranks:
        return None
    mixer = parallel.shard_sequence(create_mixer(text, dim), MESHES[ranks])
    x = randn(1, n, dim, dtype=torch.float32).requires_grad_()
    y = mixer(x)
    with SentBytes() as backward:
        y.sum().backward()
    return backward.reduced


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


def bytes_of(text, ranks, n, batch, dim, heads, masked=False):
    """(exchanged, reduced) of a forward pass and of its backward, float32."""
    if dist.get_rank() >= ranks:
        return None
    mixer = fresh_mixer(text, dim, num_heads=heads)
    mixer = parallel.shard_sequence(mixer, MESHES[ranks], sum_gradients=False)
    x = randn(batch, n, dim, dtype=torch.float32).requires_grad_()
    mask = torch.ones(batch, n, dtype=torch.bool) if masked else None
    with SentBytes() as forward:
        y = mixer(x, mask)
    with SentBytes() as backward:
        y.sum().backward()
    return (forward.exchanged, forward.reduced), (backward.exchanged, backward.reduced)


def share_of_memory(text, n, dim):
    """Peak of a forward and backward on two ranks, over that of one device; [] elsewhere."""
    if dist.get_rank() > 1:
        return None
    settings = (chunks.MAX_CHUNKS["cpu"], chunks.MIN_CHUNK_BYTES["cpu"], exchange.MIN_COLUMNS)
    widths = (exchange.WIDTH_CHUNK["cpu"], modes.CHUNK_TOKENS["cpu"])
    # As a sequence of 131,072 tokens is cut.
    chunks.MAX_CHUNKS["cpu"], chunks.MIN_CHUNK_BYTES["cpu"], exchange.MIN_COLUMNS = 64, 1 << 16, 3
    exchange.WIDTH_CHUNK["cpu"], modes.CHUNK_TOKENS["cpu"] = 32, 32
    peaks = []
    try:
        for mixer in (
            create_mixer(text, dim),
            parallel.shard_sequence(create_mixer(text, dim), MESHES[2]),
        ):
            own = isinstance(mixer, sharded.Sharded)
            x = torch.randn(1, n // 2 if own else n, dim, requires_grad=True)
            upstream = torch.randn_like(x)

            def step(mixer=mixer, x=x, upstream=upstream):
                mixer(x).backward(upstream)
                mixer.zero_grad()
                x.grad = None

            step()
            peaks.append(peak_mb(step, "cpu"))
    finally:
        chunks.MAX_CHUNKS["cpu"], chunks.MIN_CHUNK_BYTES["cpu"], exchange.MIN_COLUMNS = settings
        exchange.WIDTH_CHUNK["cpu"], modes.CHUNK_TOKENS["cpu"] = widths
    return peaks[1] / peaks[0]


def die():
    """As the system's out-of-memory killer ends a process: no word, no clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


def call(text, *, odd_rank=None, timeout_s=None, **odd):
    """One forward and backward, in which ``odd_rank`` does something else than the others."""
    odd = odd if dist.get_rank() == odd_rank else {}
    mesh = MESHES[dist.get_world_size()]
    if timeout_s is not None:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), mesh.get_group())
    mixer = parallel.shard_sequence(fresh_mixer(text), mesh, sum_gradients=False)
    x = torch.zeros(odd.get("batch", 2), 6, odd.get("dim", 8), requires_grad=odd.get("grad", True))
    dtype = getattr(torch, odd.get("dtype", "float32"))
    mixer, x = mixer.to(dtype), x.detach().to(dtype).requires_grad_(x.requires_grad)
    if odd.get("dies_in") == "forward":
        die()
    if odd.get("dies_in") == "chunks":
        mixer.ranks.start_all_to_all_flat = _dies_at_its(3, mixer.ranks.start_all_to_all_flat)
    time.sleep(odd.get("sleeps_s", 0))
    y = mixer(x)
    if odd.get("dies_in") == "backward":
        die()
    if y.requires_grad:
        y.sum().backward()
    return list(y.shape)


def _dies_at_its(number, function):
    """``function``, in whose ``number``-th call this process is killed."""
    calls = itertools.count(1)

    def call(*arguments):
        if next(calls) == number:
            die()
        return function(*arguments)

    return call


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


def shard_with(what):
    """``shard_sequence`` with an argument that does not fit."""
    mesh = MESHES[dist.get_world_size()]
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))
    mixer = create_mixer("fnet", 8)
    if what == "two dimensions":
        parallel.shard_sequence(mixer, square)
    elif what == "no mesh":
        parallel.shard_sequence(mixer, dist.group.WORLD)
    elif what == "no mixer":
        parallel.shard_sequence(torch.nn.Linear(2, 2), mesh)
    elif what == "twice":
        parallel.shard_sequence(parallel.shard_sequence(mixer, mesh), mesh)
    elif what == "convolution":
        parallel.shard_sequence(torch.nn.Sequential(mixer, torch.nn.Conv1d(2, 2, 3)), mesh)
    elif what == "impl":
        parallel.shard_sequence(create_mixer("fnet(impl=reference)", 8), mesh)
    elif what == "impl on one rank":
        impl = "reference" if dist.get_rank() == 1 else "auto"
        parallel.shard_sequence(create_mixer("fnet", 8, impl=impl), mesh)
    elif what == "meta":
        with torch.device("meta"):
            mixer = create_mixer("attention", 8)
        parallel.shard_sequence(mixer, mesh)
    elif what == "models":
        parallel.shard_sequence(create_mixer("attention", 8 + 8 * (dist.get_rank() == 1)), mesh)
    elif what == "short":
        parallel.local_slice(3, mesh)
    elif what == "weights":
        parallel.shard_sequence(create_mixer("attention", 8), mesh)(
            torch.zeros(1, 4, 8), return_weights=True
        )


def metadata_through_all(size, dies=False):
    """The metadata that ranks of a mesh without a CPU backend gather, and the bytes sent."""
    if dist.get_rank() >= size:
        return None
    if dies and dist.get_rank() == size - 1:
        die()
    over = comm_ranks.Ranks(MESHES[size])
    by_cpu, comm_ranks._has_cpu_backend = (
        comm_ranks._has_cpu_backend,
        lambda group: group is dist.group.WORLD,
    )
    try:
        with SentBytes() as sent:
            rows = over.check_consistent(
                "here", {"rank": over.rank, "size": size}, may_differ=("rank",)
            )
        return rows, sent.exchanged
    finally:
        comm_ranks._has_cpu_backend = by_cpu


@contextmanager
def capture() -> Iterator[None]:
    """As if a CUDA graph were captured; to tell the other ranks something is an error."""

    def nobody(*_):
        raise AssertionError("ranks communicated while a graph was captured")

    kept, gather = sharded.capturing, comm_ranks.Ranks._all_gather
    sharded.capturing, comm_ranks.Ranks._all_gather = (lambda: True), nobody
    try:
        yield
    finally:
        sharded.capturing, comm_ranks.Ranks._all_gather = kept, gather


def captured(text, layouts, of_text=False):
    """Whether output and gradients captured after calls of ``layouts`` are those of the last one.

    ``text`` is a mixer, or the pattern of a classifier ``of_text``.
    """
    mesh = MESHES[len(layouts[0])]
    if mine(layouts[0]) is None:
        return True
    if of_text:
        model = seeded(TextClassifier, 11, 40, 3, dim=8, depth=2, mixers=text, num_heads=2)
    else:
        model = make_mixer(text, 8, num_heads=2, dtype=torch.float64)
    parallel.shard_sequence(model, mesh)

    def results(counts):
        own, n = mine(counts), sum(counts)
        if of_text:
            y = model((torch.arange(2 * n).view(2, n) % 11)[:, own])
            return [y, *torch.autograd.grad(y.sum(), list(model.parameters()))]
        x = randn(2, n, 8, seed=1)[:, own].requires_grad_()
        y = model(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]

    for counts in layouts:
        want = results(counts)
    with capture():
        got = results(layouts[-1])
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def captured_wrongly(what):
    """A call that cannot be captured."""
    mixer = parallel.shard_sequence(create_mixer("spectral(modes=2)", 8), MESHES[4])
    x, mask = torch.zeros(2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    if what != "never called":
        mixer(x)
    if what != "a mask" and not (what == "a mask elsewhere" and dist.get_rank() == 2):
        mask = None
    if what == "a mask elsewhere":
        mixer(x, mask)
    if what == "a gradient":
        x = torch.zeros(2, 6, 8, requires_grad=True)
    with capture():
        if what == "a width":
            mixer(torch.zeros(2, 6, 9))
        mixer(x[:, :5] if what == "another shape" else x, mask)
