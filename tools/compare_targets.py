"""python tools/compare_targets.py FOLDER [DECODER ...]: nbs/targets.csv, the tables of chapters 18 and 20.

Trains each decoder on each kind of text, all on the same images, and on composed reports with four more seeds; scores
all of them on the test part. The models, and what they wrote, go to FOLDER. It can be stopped: a row that stands in the
table is not made again, so several decoders can be trained side by side. The features, of two bodies a study, are
encoded the first time."""
import sys
from pathlib import Path
from time import process_time

import pandas as pd

from xraycap.results import evaluate
from xraycap.training import TARGETS, train_captioner

TABLE = Path(__file__).resolve().parents[1] / "nbs" / "targets.csv"
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


if __name__ == "__main__": main(Path(sys.argv[1]), sys.argv[2:] or DECODERS)
