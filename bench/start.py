"Starting: what `import xraycap` adds to fastai's own import, and how soon `xraycap --help` is on the screen."
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

from bench.common import rounds, row

EVERYTHING = 'import xraycap; [getattr(xraycap, name) for name in xraycap.__all__]'


def measure(limit):
    python = lambda code: lambda: subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
    fastai = 'import fastai.vision.all'
    seconds = rounds({'fastai': python(fastai), 'xraycap': python(f'{fastai}; import xraycap'), 'everything': python(f'{fastai}; {EVERYTHING}'),
                      'help': lambda: subprocess.run([Path(sys.executable).with_name('xraycap'), '--help'], check=True, capture_output=True)},
                     3, warm=False, clock=perf_counter)
    above = lambda name: max(min(seconds[name]) - min(seconds['fastai']), 1e-3)
    return [row('import xraycap, after fastai.vision.all', 's', above('xraycap'), 'goal', .3, 1),
            row('import xraycap and every name of it', 's', above('everything'), 'import fastai.vision.all', seconds['fastai']),
            row('xraycap --help', 's', seconds['help'], 'goal', 1, 1)]
