"""Swapped models under Trainer, accelerate, checkpointing, compile, half types and DDP."""

from __future__ import annotations

import copy
import socket

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import flashmix
from helpers import assert_close
from hf_models import MIXERS, inputs, reviews, swapped, transformers

each_mixer = pytest.mark.parametrize("mixers", MIXERS)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def batch(*lengths: int) -> dict[str, torch.Tensor]:
    return {**reviews(*lengths), "labels": torch.arange(len(lengths)) % 3}


def gradients(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@each_mixer
def test_every_parameter_that_trains_gets_a_gradient(mixers):
    model = swapped(mixers).train()
    model(**batch(9, 4)).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_mpnet_has_no_parameter_without_a_gradient():
    model = swapped("fnet", "mpnet").train()
    model(**batch(9, 4)).loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@each_mixer
def test_gradient_checkpointing_changes_no_gradient(mixers):
    model = swapped(mixers, **NO_DROPOUT).double().train()
    want = gradients(model, batch(9, 4))
    model.gradient_checkpointing_enable()
    got = gradients(model, batch(9, 4))
    for name in want:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize(
    "mixers", ["attention", "topk(topk=3)", "fnet", "fourier", "spectral(modes=3),local(window=5)"]
)
def test_compiles_without_a_graph_break_and_without_a_difference(mixers):
    torch.compiler.reset()
    model = swapped(mixers, **NO_DROPOUT).double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**batch(9, 4)).logits, model(**batch(9, 4)).logits, 1e-12)
    got, want = gradients(compiled, batch(9, 4)), gradients(model, batch(9, 4))
    for name, gradient in got.items():
        assert_close(gradient, want[name.removeprefix("_orig_mod.")], 1e-10)


@each_mixer
def test_bfloat16_autocast_trains(mixers):
    model = swapped(mixers).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch(9, 4)).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["bert", "vit"])
@each_mixer
def test_half_models_answer_as_the_model_they_came_from(mixers, name, dtype):
    if "fnet" in mixers and "ortho" not in mixers and dtype == torch.float16:
        pytest.skip("unnormalised sums need norm=ortho in float16, as the documentation says")
    model = swapped(mixers, name).double()
    exact, rounded = model, copy.deepcopy(model).to(dtype)
    batch = {
        k: v.to(torch.float64) if v.is_floating_point() else v for k, v in inputs(name).items()
    }
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs(name).items()}
    with torch.no_grad():
        got, want = rounded(**half).logits, exact(**batch).logits
    assert got.dtype == dtype
    # Two layers of a dozen roundings each; top-k may choose another of two nearly equal keys.
    assert_close(got, want, 40 * torch.finfo(dtype).eps if "topk" not in mixers else 0.5)


def dataset(size: int) -> list[dict]:
    rows = []
    for index in range(size):
        one = reviews(4 + index % 9, width=16)
        one["input_ids"][0, 0] = 5 + index % 3
        rows.append({"labels": index % 3, **{k: v[0] for k, v in one.items()}})
    return rows


@pytest.mark.parametrize("mixers", ["fnet", "spectral(modes=3),attention"])
def test_trainer_learns_saves_and_resumes_as_if_never_stopped(mixers, tmp_path):
    pytest.importorskip("accelerate")

    def train(folder, resume=False, **options):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / folder),
            max_steps=12,
            save_steps=6,
            per_device_train_batch_size=8,
            learning_rate=5e-3,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=0,
            **options,
        )
        model = swapped(mixers, **NO_DROPOUT)
        trainer = transformers.Trainer(model, arguments, train_dataset=dataset(48))
        trainer.train(
            resume_from_checkpoint=str(tmp_path / "whole/checkpoint-6") if resume else None
        )
        return trainer

    whole = train("whole")
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    resumed = train("resumed", resume=True)
    for (name, one), other in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    loaded = flashmix.from_pretrained(tmp_path / "whole/checkpoint-12")
    with torch.no_grad():
        want = whole.model.eval()(**reviews(9, 4)).logits
        assert torch.equal(loaded(**reviews(9, 4)).logits, want)


def test_accelerate_prepares_trains_and_restores(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model = swapped("spectral(modes=3),local(window=5)").train()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    accelerator.save_state(str(tmp_path))
    before = copy.deepcopy(accelerator.unwrap_model(model).state_dict())
    accelerator.backward(model(**batch(9, 4, 7)).loss)
    optimizer.step()
    trained = accelerator.unwrap_model(model).state_dict()
    assert any(not torch.equal(before[key], trained[key]) for key in before if ".mixer." in key)
    accelerator.load_state(str(tmp_path))
    for key, value in accelerator.unwrap_model(model).state_dict().items():
        assert torch.equal(value, before[key])
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


SPREAD = ["attention", "local(window=5)", "fnet", "spectral(modes=3),fourier"]


def _train_a_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    for index, mixers in enumerate(SPREAD):
        model = swapped(mixers, **NO_DROPOUT).double().train()
        spread = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        whole = batch(9, 6, 9, 4)
        share = {key: value[2 * rank : 2 * rank + 2] for key, value in whole.items()}
        for _ in range(2):  # the second step fails if the first left a parameter unused
            optimizer.zero_grad()
            spread(**share).loss.backward()
            optimizer.step()
        if rank == 0:
            torch.save(model.state_dict(), f"{folder}/{index}")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_and_leave_no_parameter_unused(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_train_a_rank, (port, str(tmp_path)), nprocs=2)
    for index, mixers in enumerate(SPREAD):
        model = swapped(mixers, **NO_DROPOUT).double().train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(**batch(9, 6, 9, 4)).loss.backward()
            optimizer.step()
        spread = torch.load(tmp_path / str(index), weights_only=True)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(spread[key], value, rtol=1e-10, atol=1e-14, msg=key)


def test_a_deep_copy_is_a_model_of_its_own():
    model = swapped("spectral(modes=3)")
    twin, want = copy.deepcopy(model), model(**reviews(9)).logits
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert torch.equal(model(**reviews(9)).logits, want)
    assert not twin(**reviews(9)).logits.any()
