"Images simulated, reports cleaned, features read."
import tempfile

import numpy as np

from bench.common import rates, rounds, row
from bench.training import random_store
from xraycap.phantom import phantom
from xraycap.reports import load_reports
from xraycap.studies import load_studies
from xraycap.text import clean_chen, clean_findings

READS = 1000


def measure(limit):
    studies, findings = load_studies("phantom"), load_reports().findings
    few, rng = list(studies.iloc[:20].itertuples()), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(folder, studies.uid)
        read = lambda: [np.array(store[u]) for u in rng.choice(studies.uid, READS)]
        seconds = rounds({"phantom": lambda: [phantom(s.uid, s.mesh) for s in few],
                          "clean_chen": lambda: findings.map(clean_chen),
                          "clean_findings": lambda: findings.map(clean_findings), "read": read}, 3)
    return [row("phantom, 224 x 224", "images/s", rates(seconds["phantom"], 2 * len(few)), "goal", 40, 1),
            row(f"cleaning {len(findings):,} reports, clean_chen", "s", seconds["clean_chen"], "goal", 2, 1),
            row(f"cleaning {len(findings):,} reports, clean_findings", "s", seconds["clean_findings"], "goal", 2, 1),
            row("feature store, a random study", "ms", np.divide(seconds["read"], READS / 1000), "goal", 1, 1)]
