"""A kernel is launched again as it was compiled, and compiled again for what Triton would."""

import torch

from flashmix.ops._triton.relaunch import Relaunched


class Kernel:
    """Stands for Triton's: compiles whenever it is asked, and tells what was launched."""

    def __init__(self, compiles=True):
        self.compiled, self.launched, self.compiles = 0, [], compiles

    def __getitem__(self, grid):
        def launch(*arguments):
            self.compiled += 1
            self.launched.append((grid, arguments))
            return Compiled(self) if self.compiles else None

        return launch


class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *arguments: self.kernel.launched.append((grid, arguments))


def test_what_changes_no_code_is_launched_again():
    kernel = Kernel()
    launch = Relaunched(kernel)
    x, y = torch.zeros(8), torch.ones(3)
    launch((1, 2, 3), (x, None), (1, 0.5), (True,))
    launch((4, 5, 6), (y, None), (7, 2.0), (True,))
    assert kernel.compiled == 1
    assert kernel.launched == [
        ((1, 2, 3), (x, None, 1, 0.5, True)),
        ((4, 5, 6), (y, None, 7, 2.0, True)),
    ]


def test_whatever_triton_compiles_differently_is_compiled():
    kernel = Kernel()
    launch = Relaunched(kernel)
    x = torch.zeros(8)
    for tensors, constants in (
        ((x, None), (1,)),
        ((x, None), (2,)),
        ((x, x), (1,)),
        ((x.half(), None), (1,)),
        ((x[1:], None), (1,)),  # 4 bytes beyond a multiple of 16
    ):
        launch((1, 1, 1), tensors, (), constants)
    assert kernel.compiled == 5


def test_an_interpreter_runs_every_time():
    kernel = Kernel(compiles=False)
    launch = Relaunched(kernel)
    for _ in range(2):
        launch((1, 1, 1), (torch.zeros(1),), (), ())
    assert kernel.compiled == 2
