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
    def output(*command): return subprocess.run(command, check=True, capture_output=True).stdout

    runs = [json.loads(output(sys.executable, "-W", "ignore", "-c", IMPORTS)) for _ in range(3)]
    spans = (0, 1), (1, 2), (1, 3)
    fastai, xraycap, everything = ([times[to] - times[since] for times in runs] for since, to in spans)
    command = Path(sys.executable).with_name("xraycap")
    help = rounds({"help": lambda: output(command, "--help")}, 3, warm=False, clock=perf_counter)["help"]
    return [row("import xraycap, after fastai.vision.all", "s", xraycap, "goal", .3, 1),
            row("import xraycap and every name of it", "s", everything, "import fastai.vision.all", fastai),
            row("xraycap --help", "s", help, "goal", 1, 1)]
