"""python tools/compare_indications.py FOLDER [RADIOGRAPHS]: nbs/indications.csv, what reading the indication wins.

Trains two readers on each study's own report, one of which sees no image, and keeps them in FOLDER; the third is the
package's. Each describes the test part with the study's indication, with none, and with another patient's. With
RADIOGRAPHS, a table of labelled ones of which nobody knows what was asked, the package's reader also describes those,
with no indication and with that of some Indiana patient. A model that stands in FOLDER is not made again."""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from compare_targets import ratio, set_counts

from xraycap.findings import label_findings
from xraycap.mesh import mesh_findings
from xraycap.metrics import best_constant
from xraycap.models import describe
from xraycap.results import paired_bootstrap, score_card
from xraycap.studies import studies_of
from xraycap.text import clean_chen
from xraycap.training import train_captioner

TABLE = Path(__file__).resolve().parents[1] / "nbs" / "indications.csv"
SAME = dict(decoder="reader", targets="own", bodies=2, crossed=0, epochs=6)
FIGURES = "bleu_4 bleu_4_low bleu_4_high cider finding_f1_micro distinct".split()
OF_IMPRESSION = "bleu_4 cider finding_f1_micro distinct".split()


def f1_gain(wanted, ours, theirs, n=1000):
    "Micro-F1 of sets of findings, ours minus theirs, and its 95 % interval over studies drawn anew."
    both, studies = np.stack([set_counts(wanted, said) for said in (ours, theirs)]), len(wanted)
    draws = np.random.default_rng(0).multinomial(studies, np.full(studies, 1 / studies), n)
    def gain(sums): return np.subtract(*ratio(sums))
    return float(gain(both.sum(1))), *np.percentile(gain(draws @ both), [2.5, 97.5])


def leaked(studies, reports):
    "Of the coded findings that an indication names: how many there are, and the share that the report names."
    known = [label_findings(o.indication) & mesh_findings(o.mesh) for o in studies.itertuples()]
    found = [names & label_findings(text) for names, text in zip(known, reports)]
    return sum(map(len, known)), sum(map(len, found)) / sum(map(len, known))


def simulated(name, model, asked):
    "Rows of one model on the simulated test part."
    wanted = [label_findings(text) for text in asked["own"].findings]
    texts, concluded = list(asked["own"].findings.map(clean_chen)), list(asked["own"].impression.map(clean_chen))
    reports = {how: describe(model, studies) for how, studies in asked.items()}
    for how, studies in asked.items():
        card, said = score_card(texts, reports[how]), [list(map(label_findings, reports[o])) for o in (how, "none")]
        impression = score_card(concluded, describe(model, studies, impression=True))
        bleu, f1 = paired_bootstrap(texts, reports[how], reports["none"]), f1_gain(wanted, *said)
        n, recall = leaked(asked["own"], reports[how])
        yield dict(model=name, images="phantom", asked=how, **{o: card[o] for o in FIGURES},
                   **dict(zip(("bleu_4_gain", "bleu_4_gain_low", "bleu_4_gain_high"), bleu)),
                   **dict(zip(("f1_gain", "f1_gain_low", "f1_gain_high"), f1)), leaks=n, leaked_recall=recall,
                   **{f"impression_{o}": impression[o] for o in OF_IMPRESSION})


def real(name, model, table, indications):
    "Rows of one model on labelled radiographs: without an indication, and with that of somebody else."
    studies, _ = studies_of(table, "chen", "test")
    can_name = mesh_findings(studies.attrs["labels"])
    wanted = [mesh_findings(o) & can_name for o in studies.mesh]
    asked = dict(none="", other=np.resize(indications, len(studies)))
    said = {how: [label_findings(o) & can_name for o in describe(model, studies.assign(indication=words))]
            for how, words in asked.items()}
    for how in said:
        f1 = ratio(set_counts(wanted, said[how]).sum(0))
        yield dict(model=name, images=Path(table).stem, asked=how, finding_f1_micro=f1, **dict(zip(
            ("f1_gain", "f1_gain_low", "f1_gain_high"), f1_gain(wanted, said[how], said["none"]))))


def main(folder, radiographs=None):
    models = {"reader": "reader"}
    for name, sizes in (("own reports", {}), ("own reports, no image", dict(blind=True))):
        models[name] = Path(folder) / name.replace(", ", "-").replace(" ", "-")
        if not models[name].exists(): train_captioner(models[name], **SAME, **sizes)
    own, train = studies_of("phantom", "chen", "test")[0], studies_of("phantom", "chen", "train")[0]
    order = np.random.default_rng(0).permutation(len(own))
    others = own.assign(indication=own.indication.values[order])
    asked = {"own": own, "none": own.assign(indication=""), "other": others}
    rows = [row for name, model in models.items() for row in simulated(name, model, asked)]
    told = [text for text in train.impression.map(clean_chen) if text]
    constant = score_card(list(own.impression.map(clean_chen)), [best_constant(told)] * len(own))
    rows.append(dict(model="best constant", images="phantom", asked="none",
                     **{f"impression_{o}": constant[o] for o in OF_IMPRESSION}))
    if radiographs: rows += real("reader", "reader", radiographs, own.indication.values)
    table = pd.DataFrame(rows).round(4)
    table.to_csv(TABLE, index=False)
    print(table.T.to_string())


if __name__ == "__main__": main(*sys.argv[1:])
