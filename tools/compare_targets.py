"""python tools/compare_targets.py FOLDER: the table of chapter 18, nbs/targets.csv.

Trains each decoder on each kind of text, all on the same images, and scores it on the test part. The models, and what
they wrote, go to FOLDER. It can be stopped: a row that stands in the table is not made again. The features, of two
bodies a study, are encoded the first time."""
import sys
from pathlib import Path
from time import process_time

import pandas as pd

from xraycap.results import evaluate
from xraycap.training import TARGETS, train_captioner

TABLE = Path(__file__).resolve().parents[1] / "nbs" / "targets.csv"
DECODERS = {"lstm": dict(dropout=.3), "attention": {}, "transformer": dict(lr=1e-3, dropout=.1)}  # as the shipped ones
SAME = dict(bodies=2, crossed=0, epochs=4)  # so that nothing but the texts differs: 2,069 studies x 2 bodies x 4
FIGURES = "bleu_4 bleu_4_low bleu_4_high bleu_4_shuffled cider finding_f1_micro distinct".split()


def row(folder, decoder, targets):
    "One training, scored."
    model, start = folder / f"{decoder}-{targets}", process_time()
    losses = train_captioner(model, decoder=decoder, targets=targets, **DECODERS[decoder], **SAME)
    minutes = (process_time() - start) / 60
    card = evaluate(model, predictions=folder / f"{model.name}.csv")
    return dict(decoder=decoder, targets=targets, **{name: card[name] for name in FIGURES},
                perplexity=losses.perplexity.min(), minutes=minutes)  # of the validation studies' texts to learn


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for decoder in DECODERS:
        for targets in reversed(TARGETS):
            done = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=["decoder", "targets"])
            if ((done.decoder == decoder) & (done.targets == targets)).any(): continue
            new = pd.DataFrame([row(folder, decoder, targets)]).round(4)
            pd.concat([done, new]).to_csv(TABLE, index=False)
            print(new.to_string(), flush=True)


if __name__ == "__main__": main(Path(sys.argv[1]))
