"""What published systems wrote for the chen test part, scored like ours: nbs/published.csv, for chapter 20.

python tools/published.py FOLDER > nbs/published.csv
FOLDER holds the two files named in SYSTEMS, from the repositories and commits that stand there. Their texts stay there:
only figures go into the table."""
import sys
from pathlib import Path

import pandas as pd

from xraycap.metrics import best_constant
from xraycap.predictions import clean_pairs, load_pairs
from xraycap.results import score_card
from xraycap.studies import studies_of
from xraycap.text import clean_chen

SYSTEMS = {  # system -> (file in FOLDER, repository@commit:path, what was published, whether it came out, cleanings)
    "CvT2DistilGPT2": (
        "cvt2distilgpt2_preds.csv",
        "aehrc/cvt2distilgpt2@c9edfb5:experiment/iu_x_ray_chen/test_iu_x_ray_chen_cvt2distilgpt2/trial_0/"
        "generated_reports/test_reports_epoch-0_16-05-2023_12-46-42.csv",
        "BLEU-1 to -4 .473 .304 .224 .175, ROUGE-L .376, CIDEr .694", "yes, with r2gen", ("r2gen", "chen")),
    "MoERad": (
        "moerad_preds.csv", "gssriram/MoERad@2cc98d4:results/iu_xray/preds.csv",
        "mean BLEU-2 of single reports .270", "yes: .270, 580 of 590 reports equal, the rest smoothed there",
        ("chen",))}
FIGURES = ("bleu_1 bleu_2 bleu_3 bleu_4 bleu_4_shuffled rouge_l cider finding_f1_micro finding_side_f1_micro "
           "distinct").split()


def main(folder):
    rows = []
    for system, (file, source, published, out, cleanings) in SYSTEMS.items():
        for clean in cleanings:
            references, hypotheses, about, _ = load_pairs(folder / file, clean=clean)
            rows.append({"system": system, "images": "real", "cleaning": clean, "studies": about["studies"],
                         **score_card(references, hypotheses), "published": published, "came out": out, "from": source})
    train, test = (list(studies_of("phantom", "chen", part)[0].findings) for part in ("train", "test"))
    constant = best_constant([clean_chen(text) for text in train])
    for clean in ("r2gen", "chen"):
        references, _ = clean_pairs(test, test, clean)
        rows.append({"system": "one report for everybody", "images": "none", "cleaning": clean, "studies": len(test),
                     **score_card(references, [constant] * len(test)), "from": "chapter 15"})
    columns = ["system", "images", "cleaning", "studies", *FIGURES, "published", "came out", "from"]
    return pd.DataFrame(rows)[columns].fillna("").round(3)


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit(__doc__)
    main(Path(sys.argv[1])).to_csv(sys.stdout, index=False)
