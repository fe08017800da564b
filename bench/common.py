"What the parts of the benchmark share: rounds in which rivals take turns, rows of two kinds (see `bench.__main__`)."
import warnings
from importlib import import_module
from time import process_time

import numpy as np


def run(
    part,  # module of this folder
    limit,  # what `bench.limit` measured; None for itself
):
    "What `measure` of a part returns, on one thread."
    import torch
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # what libraries say about each other
    return import_module(f"bench.{part}").measure(limit)


def rounds(
    rivals,  # {name: function without arguments}; each runs once a round
    n=5,  # rounds
    warm=True,  # run each once before, uncounted
    clock=process_time,  # the processor's time, of all threads; `perf_counter` where other processes do the work
):  # {name: n seconds}
    "The seconds of functions that take turns, so that whatever else the machine does meets them all alike."
    if warm:
        for f in rivals.values(): f()
    seconds = {name: [] for name in rivals}
    for _ in range(n):
        for name, f in rivals.items():
            start = clock()
            f()
            seconds[name].append(clock() - start)
    return seconds


def rates(
    seconds,  # of the rounds
    count,  # what a round does: reports, images, GFLOP
):  # what is done a second in each round
    return [count / s for s in seconds]


def row(
    name,  # what is measured
    unit,  # with a `/s` in it: more is better; otherwise (s, ms, GiB) less is better
    ours,  # values of the rounds
    peer,  # what it is compared with: a program, `goal`, or `limit`
    theirs,  # its values
    wanted=None,  # the ratio asked for; 1 against a goal
):
    "A comparison, as a row of the results."
    best, sign = (max, 1) if "/s" in unit else (min, -1)
    ours, theirs = np.atleast_1d(ours).tolist(), np.atleast_1d(theirs).tolist()
    return dict(name=name, unit=unit, ours=best(ours), ours_median=float(np.median(ours)), peer=peer,
                theirs=best(theirs), theirs_median=float(np.median(theirs)),
                ratio=(best(ours) / best(theirs)) ** sign, wanted=wanted)


def growth(
    name,  # what is measured
    unit,  # of the costs
    size,  # what grows
    costs,  # {size: values of the rounds}
):
    "How a cost grows with a size, as a row of the results; the order is the slope between the logarithms."
    sizes, best = list(costs), [float(min(c)) for c in costs.values()]
    slope = float(np.polyfit(np.log(sizes), np.log(best), 1)[0])
    return dict(name=name, unit=unit, size=size, sizes=sizes, costs=best, order=slope)
