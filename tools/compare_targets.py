"""python tools/compare_targets.py FOLDER [DECODER ...]: nbs/targets.csv, the table of chapter 18; nbs/seeds.csv, of 20.

Trains each decoder on each kind of text, all on the same images, then on composed reports with four more seeds, and
scores all of them on the test part. The models, and what they wrote, go to FOLDER. It can be stopped: a row that stands
in the table is not made again, so several decoders can be trained side by side. The features, of two bodies a study,
are encoded the first time. Where all decoders have all seeds, the second table says which differences outlast other
seeds and other patients."""
import sys
from itertools import combinations
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd

from xraycap.findings import label_findings
from xraycap.metrics import bleu_counts, bleu_of_counts, cider_each
from xraycap.predictions import read_reports
from xraycap.results import evaluate
from xraycap.studies import studies_of
from xraycap.text import clean_chen
from xraycap.training import TARGETS, train_captioner

TABLE = Path(__file__).resolve().parents[1] / "nbs" / "targets.csv"
SEEDS = TABLE.with_name("seeds.csv")
DECODERS = {"lstm": dict(dropout=.3), "attention": {}, "transformer": dict(lr=1e-3, dropout=.1)}  # as the shipped ones
SAME = dict(bodies=2, crossed=0, epochs=6)  # so that nothing but the texts differs: 2,069 studies x 2 bodies x 6
FIGURES = "bleu_4 bleu_4_low bleu_4_high bleu_4_shuffled cider finding_f1_micro distinct".split()


def row(folder, decoder, targets, seed):
    "One training, scored."
    model, start = folder / f"{decoder}-{targets}-{seed}", process_time()
    losses = train_captioner(model, decoder=decoder, targets=targets, seed=seed, **DECODERS[decoder], **SAME)
    minutes = (process_time() - start) / 60
    card = evaluate(model, predictions=folder / f"{model.name}.csv")
    return dict(decoder=decoder, targets=targets, seed=seed, **{name: card[name] for name in FIGURES},
                perplexity=losses.perplexity.min(), minutes=minutes)  # of the validation studies' texts to learn


def set_counts(wanted, said):
    "For each study twice the size of what two sets share, and the sum of their sizes: their sums' ratio is micro-F1."
    return np.array([[2 * len(a & b), len(a) + len(b)] for a, b in zip(wanted, said)])


def finding_counts(*texts): return set_counts(*(map(label_findings, each) for each in texts))
def ratio(sums): return sums[..., 0] / sums[..., 1]


OF_SUMS = {  # figure: (what is added up over studies, and the figure of such sums)
    "bleu_4": (bleu_counts, lambda sums: bleu_of_counts(sums)[..., 3]),
    "cider": (lambda *texts: np.c_[cider_each(*texts), np.ones(len(texts[0]))], ratio),
    "finding_f1_micro": (finding_counts, ratio)}


def differences(folder, n=1000):
    "Rows of two decoders' difference: its mean over the seeds, what other seeds change, what other patients change."
    studies = studies_of("phantom", "chen", "test")[0]
    references = list(studies.findings.map(clean_chen))
    def said(decoder, seed):
        reports = read_reports(folder / f"{decoder}-composed-{seed}.csv")
        return [reports[str(uid)] for uid in studies.uid]
    texts = {decoder: [said(decoder, seed) for seed in range(5)] for decoder in DECODERS}
    draws = np.random.default_rng(0).multinomial(len(studies), np.full(len(studies), 1 / len(studies)), n)
    for figure, (count, of) in OF_SUMS.items():
        counts = {decoder: np.stack([count(references, o) for o in texts[decoder]]) for decoder in DECODERS}  # s n c
        once = {decoder: of(o.sum(1)) for decoder, o in counts.items()}  # a figure a seed
        drawn = {decoder: of(draws @ o).mean(0) for decoder, o in counts.items()}  # a mean over the seeds a draw
        for a, b in combinations(DECODERS, 2):
            low, high = np.percentile(drawn[a] - drawn[b], [2.5, 97.5])
            seeds = np.sqrt((once[a].var(ddof=1) + once[b].var(ddof=1)) / 5)  # standard deviation of the two means
            yield dict(figure=figure, one=a, other=b, difference=once[a].mean() - once[b].mean(), std_of_seeds=seeds,
                       low_of_patients=low, high_of_patients=high)


def main(folder, decoders):
    folder.mkdir(parents=True, exist_ok=True)
    for targets, seed in [(name, 0) for name in reversed(TARGETS)] + [("composed", seed) for seed in range(1, 5)]:
        for decoder in decoders:
            key = dict(decoder=decoder, targets=targets, seed=seed)
            done = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame([], columns=[*key])
            if (done[[*key]] == [*key.values()]).all(axis=1).any(): continue
            made = pd.DataFrame([row(folder, **key)]).round(4)
            made.to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
            print(made.to_string(), flush=True)
    done = pd.read_csv(TABLE).query("targets == 'composed'")
    if len(done) == 5 * len(DECODERS): pd.DataFrame(differences(folder)).round(4).to_csv(SEEDS, index=False)


if __name__ == "__main__": main(Path(sys.argv[1]), sys.argv[2:] or DECODERS)
