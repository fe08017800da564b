"Simulated images a second on one core, and the machine's own limit beside it: `OMP_NUM_THREADS=1 python bench/phantom.py`"
from time import process_time

import numpy as np

from xraycap.phantom import phantom
from xraycap.reports import load_studies

studies = load_studies('phantom').iloc[:60]
phantom(1)
rounds = []
for _ in range(3):
    t = process_time()
    for s in studies.itertuples(): phantom(s.uid, s.mesh)
    rounds.append(2 * len(studies) / (process_time() - t))
a = np.random.default_rng(0).standard_normal((2048, 2048)).astype('f4')
a @ a
t = process_time(); a @ a; limit = 2 * 2048**3 / (process_time() - t) / 1e9
print(f'phantom, 224 x 224: best {max(rounds):.0f}, median {np.median(rounds):.0f} images/s of processor time (float32 product: {limit:.0f} GFLOP/s)')
