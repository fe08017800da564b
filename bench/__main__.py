"""Speed, side by side: `make bench`, or `python -m bench search training` for some parts of it.

Each part is a module of this folder with `measure(limit)`; it runs in a fresh process of one thread, so that its memory
is its own. What is compared takes turns within a round, and best and median of the rounds are kept (`bench.common`).
`measure` returns rows of two kinds, made by `row` and `growth` of `bench.common`:

- a comparison: `name`, `unit`, `ours` and `ours_median`, `peer` (what it is compared with), `theirs` and
  `theirs_median`, `ratio` (how many times better ours is: quotient of the best rates, or of the best times the other
  way round), `wanted` (the ratio asked for, or None);
- a growth: `name`, `unit`, `size` (of what), `sizes`, `costs` (best seconds at each size), `order` (n: the cost grows
  like size ** n).

Seconds are the processor's, of all threads of the process together, so that other programs on the machine disturb
little; where other processes do the work, they are the clock's.

`limit` is what the machine reaches at best: `gflops` (a large float32 matrix product) and `gbs` (a large copy; read and
written). Prints a table and writes bench/results.json: `machine`, `limit`, and `rows` by part. Parts that did not run
keep their rows."""
import os

os.environ |= dict(OMP_NUM_THREADS="1", TRANSFORMERS_VERBOSITY="error", PYTHONWARNINGS="ignore", TQDM_DISABLE="1")

import json
import platform
import sys
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

from bench.common import run

PARTS = ["fast", "pytorch", "search", "training", "encoding", "data", "start", "grow"]
RESULTS = Path(__file__).with_name("results.json")


def cpu():
    "The processor's name, as the system gives it."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def show(rows):
    "A part's rows as a table."
    for r in rows:
        if "sizes" in r:
            costs = "  ".join(f"{s}: {c:.3g}" for s, c in zip(r["sizes"], r["costs"]))
            print(f"  {r['name']}, {r['unit']} by {r['size']}:  {costs}   order {r['order']:.2f}")
        else:
            wanted, met = r["wanted"], "met" if r["ratio"] >= (r["wanted"] or 0) else "MISSED"
            ours = f"{r['ours']:>9.4g} (median {r['ours_median']:.4g}) {r['unit']:<12}"
            print(f"  {r['name']:<44}{ours} {r['peer']:>34}: {r['theirs']:>8.4g}   ratio {r['ratio']:>7.3g}"
                  + (f"  wanted {wanted:>5g}  {met}" if wanted is not None else ""), flush=True)


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(PARTS)
    if unknown: sys.exit(f"bench: there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}.")
    old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        limit = pool.apply(run, ("limit", None))
        speed = f"matrix product {limit['gflops']:.0f} GFLOP/s, copy {limit['gbs']:.1f} GB/s"
        print(f"one thread of {cpu()}: {speed} (float32)", flush=True)
        for part in sys.argv[1:] or PARTS:
            start = perf_counter()
            old[part] = pool.apply(run, (part, limit))
            print(f"\n{part} ({perf_counter() - start:.0f} s)")
            show(old[part])
            rows = {p: old[p] for p in PARTS if p in old}
            results = dict(machine=cpu(), date=str(date.today()), limit=limit, rows=rows)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
