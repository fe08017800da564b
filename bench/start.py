"Starting: what `import xraycap` adds to fastai's own import, and how soon `xraycap --help` is on the screen."
import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from bench.common import rounds, row

IMPORTS = """
import json
from time import perf_counter
times = [perf_counter()]
import fastai.vision.all
times.append(perf_counter())
import xraycap
times.append(perf_counter())
for name in xraycap.__all__: getattr(xraycap, name)
times.append(perf_counter())
print(json.dumps(times))
"""


def measure(limit):
    said = [json.loads(subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORTS], check=True, capture_output=True).stdout) for _ in range(3)]
    fastai, xraycap, everything = ([times[to] - times[since] for times in said] for since, to in ((0, 1), (1, 2), (1, 3)))
    help = rounds({"help": lambda: subprocess.run([Path(sys.executable).with_name("xraycap"), "--help"], check=True, capture_output=True)},
                  3, warm=False, clock=perf_counter)["help"]
    return [row("import xraycap, after fastai.vision.all", "s", xraycap, "goal", .3, 1),
            row("import xraycap and every name of it", "s", everything, "import fastai.vision.all", fastai),
            row("xraycap --help", "s", help, "goal", 1, 1)]
