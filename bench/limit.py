"What the machine reaches at best in one thread: a large float32 matrix product and a large copy."
import torch

from bench.common import rates, rounds

N, WORDS = 2048, 2**26  # a product of N x N matrices; numbers to copy, 256 MiB


def product():
    "A function that multiplies two large matrices, and its GFLOP."
    a, b, out = torch.randn(N, N), torch.randn(N, N), torch.empty(N, N)
    return lambda: torch.mm(a, b, out=out), 2 * N**3 / 1e9


def measure(_):
    f, gflop = product()
    a, b = torch.randn(WORDS), torch.empty(WORDS)
    seconds = rounds({"product": f, "copy": lambda: b.copy_(a)}, 5)
    return dict(gflops=max(rates(seconds["product"], gflop)), gbs=max(rates(seconds["copy"], 2 * 4 * WORDS / 1e9)))
