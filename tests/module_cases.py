"""What the ranks of a test do with PyTorch's own parallelism; see ``parallel_cases``."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from flashmix import parallel
from flashmix.models import SequenceClassifier
from helpers import fresh_mixer, make_mixer, randn, right_padding
from parallel_cases import MESHES, _relative, errors_of_mixer, seeded
from parallel_models import encoder

WIDTH = 16


def make(text):
    return make_mixer(text, WIDTH, num_heads=4)


def whole_heads(mixer, x, mask):
    """The mixing alone of heads that are ``x`` itself."""
    heads = x.unflatten(-1, (4, -1)).transpose(1, 2)
    return mixer.mix_heads(heads, heads.flip(2), heads.flip(3), mask)


def errors(whole, sharded, mask=None, call=lambda model, x, mask: model(x, mask), dim=WIDTH):
    """Of output, input's gradient and parameters, their values and gradients gathered."""
    upstream, found = randn(2, 9, dim, seed=2), []
    for model in (whole, sharded):
        x = randn(2, 9, dim, seed=1).requires_grad_()
        y = call(model, x, mask)
        (y * upstream).sum().backward()
        found.append((y, x.grad))
    pairs = {"y": (found[1][0], found[0][0]), "x": (found[1][1], found[0][1])}
    values = whole_state(sharded.named_parameters())
    grads = whole_state((name, p.grad) for name, p in sharded.named_parameters())
    assert values.keys() == dict(whole.named_parameters()).keys()
    for name, parameter in whole.named_parameters():
        pairs[name] = (values[name], parameter)
        if parameter.grad is not None:
            pairs[f"{name}'s gradient"] = (grads[name], parameter.grad)
    return {name: _relative(got, want, want) for name, (got, want) in pairs.items()}


def whole_state(named):
    """Gathered, with q, k and v in one again."""
    state = {name: gathered(tensor) for name, tensor in named}
    for name in [name for name in state if name.endswith("_q")]:
        parts = [state.pop(f"{name[:-1]}{part}") for part in "qkv"]
        state[name[:-2]] = None if parts[0] is None else torch.cat(parts)
    return state


def gathered(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def bert(text):
    """A small BERT with other mixers, whose filters, gates and projections are all random."""
    from transformers import BertConfig, BertModel

    import flashmix

    config = BertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=16,
        vocab_size=50,
        max_position_embeddings=64,
    )
    model = flashmix.swap(seeded(BertModel, config, add_pooling_layer=False).eval(), text)
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed) * WIDTH**-0.5
    return model.double()


def hidden_states(model):
    ids, mask = torch.arange(18).view(2, 9), right_padding(2, 9).long()
    return model(input_ids=ids, attention_mask=mask).last_hidden_state


def error_of_bert(sharded, text):
    want = hidden_states(bert(text))
    return _relative(hidden_states(sharded), want, want)


# Nothing to mix


def errors_of_nothing(texts, counts, batch, mask):
    """As ``errors_of_mixer`` of several mixers, by their names."""
    return {
        f"{text}: {name}": error
        for text in texts
        for name, error in errors_of_mixer(text, counts, batch, 2, mask).items()
    }


# FSDP2


def errors_of_fsdp(texts):
    """By mixer: called with tokens, and with heads."""
    found = {}
    for text in texts if dist.get_rank() < 2 else ():
        for call in (lambda model, x, mask: model(x, mask), whole_heads):
            sharded = fully_shard(make(text), mesh=MESHES[2])
            for name, error in errors(make(text), sharded, right_padding(2, 9), call).items():
                found[f"{text}: {name}"] = max(error, found.get(f"{text}: {name}", 0))
    return found


def errors_of_fsdp_encoder():
    if dist.get_rank() >= 2:
        return {}
    sharded = encoder()
    for block in sharded.blocks:
        fully_shard(block.mixer, mesh=MESHES[2])
        fully_shard(block, mesh=MESHES[2])
    return errors(encoder(), fully_shard(sharded, mesh=MESHES[2]), right_padding(2, 9), dim=8)


def errors_of_fsdp_bert(texts):
    if dist.get_rank() >= 2:
        return {}
    found = {}
    for text in texts:
        model = bert(text)
        for layer in model.encoder.layer:
            fully_shard(layer.attention.self.mixer, mesh=MESHES[2])
        found[text] = error_of_bert(model, text)
    return found


# Tensor parallelism


def tensor_parallel(model, mesh):
    return parallelize_module(model, mesh, parallel.tp_plan(model))


def errors_of_tensor_parallel(texts, ranks):
    """By mixer, with a mask and without."""
    found = {}
    for text in texts if dist.get_rank() < ranks else ():
        for mask in (None, right_padding(2, 9)):
            sharded = tensor_parallel(make(text), MESHES[ranks])
            for name, error in errors(make(text), sharded, mask).items():
                found[f"{text}: {name}"] = max(error, found.get(f"{text}: {name}", 0))
    return found


def errors_of_tensor_parallel_encoder():
    if dist.get_rank() >= 2:
        return {}
    return errors(encoder(), tensor_parallel(encoder(), MESHES[2]), dim=8)


def error_of_tensor_parallel_classifier():
    if dist.get_rank() >= 2:
        return 0.0

    def make():
        options = {"dim": 16, "mixers": "attention,fourier", "num_heads": 2}
        return seeded(SequenceClassifier, 5, 9, 3, **options)

    x, mask = randn(2, 9, 5), right_padding(2, 9)
    want = make()(x, mask)
    return _relative(tensor_parallel(make(), MESHES[2])(x, mask), want, want)


def errors_of_both():
    """Two ranks share the heads, FSDP2 shards what each of them has over two more."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "heads"))
    sharded = tensor_parallel(encoder(), mesh["heads"])
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh["data"])
    return errors(encoder(), fully_shard(sharded, mesh=mesh["data"]), dim=8)


def errors_of_checkpoints(folder):
    """What a whole mixer has after loading what ranks gathered, and they after DCP's round."""
    if dist.get_rank() >= 2:
        return {}
    whole, sharded = make("attention"), tensor_parallel(make("attention"), MESHES[2])
    state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    loaded = make_mixer("attention", WIDTH, num_heads=4).apply(zero)
    loaded.load_state_dict(state)
    dcp.save(sharded.state_dict(), checkpoint_id=folder, process_group=MESHES[2].get_group())
    again = tensor_parallel(make("attention").apply(zero), MESHES[2])
    state = again.state_dict()
    dcp.load(state, checkpoint_id=folder, process_group=MESHES[2].get_group())
    again.load_state_dict(state)
    found = {}
    for name, want in whole.named_parameters():
        found[f"gathered {name}"] = _relative(loaded.get_parameter(name), want, want)
    for name, got in whole_state(again.named_parameters()).items():
        want = whole.get_parameter(name)
        found[f"DCP's {name}"] = _relative(got, want, want)
    return found


def zero(module):
    for parameter in module.parameters(recurse=False):
        torch.nn.init.zeros_(parameter)


def plain_plan(text, **options):
    """PyTorch's plan, as for a model whose q, k and v are layers of their own."""
    if dist.get_rank() >= 2:
        return {}
    first = "value" if "fourier" in text else "qkv"
    plan = {first: ColwiseParallel(**options), "out": RowwiseParallel()}
    return errors(make(text), parallelize_module(make(text), MESHES[2], plan))


def three_heads(text):
    if dist.get_rank() < 2:
        tensor_parallel(make_mixer(text, 6, num_heads=3), MESHES[2])


def weights_of_heads(text):
    if dist.get_rank() < 2:
        tensor_parallel(make(text), MESHES[2])(randn(2, 9, WIDTH), return_weights=True)


def error_of_bert_with_plain_plan(text):
    """A swapped BERT whose own projections are sharded by heads."""
    if dist.get_rank() >= 2:
        return 0.0
    model = bert(text)
    plan = {
        name: ColwiseParallel() if name.endswith(("query", "key", "value")) else RowwiseParallel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.endswith(("query", "key", "value", "attention.output.dense"))
    }
    return error_of_bert(parallelize_module(model, MESHES[2], plan), text)


def both_ways(first):
    """Tokens spread over ranks that share heads, one ``first`` or the other."""
    if dist.get_rank() >= 2:
        return
    mixer, mesh = make("attention"), MESHES[2]
    steps = {"tokens": parallel.shard_sequence, "heads": tensor_parallel}
    for step in (first, *(steps.keys() - {first})):
        steps[step](mixer, mesh)


# Models that are made on the meta device


def made_on_meta(text, shard):
    """A mixer that is sharded before it has values, and then gets those that it starts with."""
    with torch.device("meta"):
        model = fresh_mixer(text, WIDTH, num_heads=4)
    shard(model)
    model.to_empty(device="cpu")
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.reset_parameters()
    return model


def starts_of_meta(texts, way):
    """By mixer and parameter: smallest and largest value, on each rank, of all ranks' shards."""
    if dist.get_rank() >= 2:
        return {}
    shards = {
        "fsdp": lambda model: fully_shard(model, mesh=MESHES[2]),
        "heads": lambda model: tensor_parallel(model, MESHES[2]),
    }
    found = {}
    for text in texts:
        model = made_on_meta(text, shards[way])
        for name, whole in whole_state(model.named_parameters()).items():
            found[f"{text}: {name}"] = (whole.min().item(), whole.max().item())
        assert model(randn(2, 9, WIDTH, dtype=torch.float32)).isfinite().all()
    return found
