"""When ranks share memory, and what they do where they cannot: one of two ranks, the GPU faked."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from flashmix.bench.ranks.traffic import SentBytes
from flashmix.errors import ImplementationError
from flashmix.parallel.comm import shared_memory as memory_module
from flashmix.parallel.comm.shared_memory import ENVIRONMENT, SharedMemory, shared_memory


class OneOfTwo:
    """The first rank; ``other`` makes the second one's row of the first one's."""

    def __init__(self, other, device_type="cuda"):
        self.rank, self.size, self.shared, self.device_type = 0, 2, None, device_type
        self.other, self.sent = other, []
        backend = SimpleNamespace(options=SimpleNamespace(_timeout=timedelta(seconds=8)))
        self.group = SimpleNamespace(_get_backend=lambda device: backend)

    def all_gather_ints(self, row):
        self.sent.append(row)
        return [row, self.other(row)]


def with_another_gpu(row):
    """The same machine, another GPU; or the same answer."""
    return [row[0], row[1] + 1, *row[2:]] if len(row) == 3 else row


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(uuid="GPU-0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    probes = []
    monkeypatch.setattr(SharedMemory, "probe", lambda memory: probes.append(memory))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    return probes


def test_gpus_of_one_machine_share_memory_and_ask_once(gpu):
    ranks = OneOfTwo(with_another_gpu)
    memory = shared_memory(ranks)
    assert isinstance(memory, SharedMemory)
    assert gpu == [memory]
    count = len(ranks.sent)
    assert shared_memory(ranks) is memory
    assert len(ranks.sent) == count


OTHERS = {
    "another machine": lambda row: [row[0] + 1, row[1] + 1, row[2]],
    "the same GPU": lambda row: row,
    "switched off there": lambda row: [row[0], row[1] + 1, 0],
}


@pytest.mark.parametrize("other", OTHERS)
def test_ranks_that_cannot_or_may_not_send_messages_unasked(gpu, other):
    ranks = OneOfTwo(OTHERS[other])
    assert shared_memory(ranks) is None
    assert gpu == []
    assert len(ranks.sent) == 1


def test_the_environment_switches_it_off_for_all(gpu, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "0")
    ranks = OneOfTwo(with_another_gpu)
    assert shared_memory(ranks) is None
    assert ranks.sent[0][2] == 0
    assert gpu == []


def test_ranks_on_cpus_ask_nobody():
    ranks = OneOfTwo(with_another_gpu, device_type="cpu")
    assert shared_memory(ranks) is None
    assert ranks.sent == []


@pytest.mark.usefixtures("gpu")
def test_a_rank_that_fails_to_set_it_up_tells_the_others_and_says_why(monkeypatch):
    def fail(memory):
        raise RuntimeError("no handle\nand a trace")

    monkeypatch.setattr(SharedMemory, "probe", fail)
    ranks = OneOfTwo(with_another_gpu)
    with pytest.warns(UserWarning, match=rf"\(no handle\); messages .* {ENVIRONMENT}=0"):
        assert shared_memory(ranks) is None
    assert ranks.sent[-1] == [0]


@pytest.mark.usefixtures("gpu")
def test_where_another_rank_fails_all_send_messages():
    ranks = OneOfTwo(lambda row: with_another_gpu(row) if len(row) == 3 else [0])
    with pytest.warns(UserWarning, match="messages are sent instead"):
        assert shared_memory(ranks) is None


@pytest.fixture
def memory(monkeypatch):
    """Whose buffers are this machine's own."""

    def grow(memory, size):
        memory._buffer = torch.zeros(size, dtype=torch.uint8)

    monkeypatch.setattr(SharedMemory, "_grow", grow)
    return SharedMemory(OneOfTwo(with_another_gpu))


def test_a_buffer_grows_and_is_reused(memory):
    small = memory.buffer(4, torch.float32)
    assert (small.shape, small.dtype) == ((4,), torch.float32)
    large = memory.buffer(64, torch.bfloat16)
    assert memory.buffer(2, torch.float32).data_ptr() == large.data_ptr()


def test_a_captured_buffer_is_kept_and_none_is_made_meanwhile(memory, monkeypatch):
    before = memory.buffer(4, torch.float32)
    with monkeypatch.context() as capture:
        capture.setattr(memory_module, "capturing", lambda: True)
        memory.buffer(4, torch.float32)
        with pytest.raises(ImplementationError, match="call the model once with inputs of this"):
            memory.buffer(5, torch.float32)
    memory.buffer(400, torch.float32)
    assert [kept.data_ptr() for kept in memory._captured] == [before.data_ptr()]


def test_bytes_written_in_others_memory_count_as_sent():
    with SentBytes() as sent:
        memory_module.STATS.written += 7
    assert sent.total(2) == 7
