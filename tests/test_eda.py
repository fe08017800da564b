"""The tables of chapter 2 on a collection that is not the Indiana one, and against counts made by other means."""
import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

matplotlib.use("Agg")
from xraycap import eda
from xraycap.studies import load_studies
from xraycap.text import clean_chen

FINDINGS = [
    "Die Lunge ist frei. Kein Erguß.", "No mass. Lungs clear!", "no mass; lungs clear", "A 1.2 cm nodule. No mass."]


@pytest.fixture()
def own(tmp_path):
    "A clinic's own table: four reports, the first study without a lateral image"
    laterals, parts = ["", "side.png", "side.png", "side.png"], ["train", "train", "test", "val"]
    studies = enumerate(zip(laterals, FINDINGS, parts))
    rows = [f'{i}.png,{lateral},"{text}",{part}' for i, (lateral, text, part) in studies]
    for name in (0, 1, 2, 3, "side"): Image.new("L", (40, 40)).save(tmp_path / f"{name}.png")
    (tmp_path / "own.csv").write_text("\n".join(["frontal,lateral,findings,split", *rows]), encoding="utf-8")
    return load_studies(tmp_path / "own.csv")


def test_summary_of_an_own_collection(own):
    card = eda.summary(own)
    assert card[["studies", "images", "studies with one image", "studies with both views"]].tolist() == [4, 7, 1, 3]
    assert card["share coded normal"] == 0
    assert card["share of test reports word for word in train"] == card["share with 9 words of 10 of one in train"] == 1


def test_parts_and_codes_that_an_own_collection_lacks(own):
    assert eda.part_table(own).missing.to_dict() == {"findings": 0, "impression": 4, "indication": 4, "comparison": 4}
    assert len(eda.code_counts(own.mesh)) == 0


def test_sentences():
    assert eda.report_sentences(FINDINGS[0]) == ["die lunge ist frei", "kein erguß"]
    assert eda.report_sentences(FINDINGS[3]) == ["a 1 2 cm nodule", "no mass"]
    assert eda.report_sentences("") == eda.report_sentences(" 2. .. ") == []
    assert eda.sentence_counts(FINDINGS).head(2).to_dict() == {"no mass": 3, "lungs clear": 2}


def test_nearest_train_against_sets():
    "More test studies than one block holds, and one whose words training has never seen"
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghijkl"), rng.integers(1, 9))) for _ in range(700)] + ["unheard of"]
    studies = pd.DataFrame(dict(uid=np.arange(701), findings=texts, split=["train"] * 300 + ["test"] * 401))
    near = eda.nearest_train(studies)
    for uid, row in near.iterrows():
        bag = set(texts[uid].split())
        overlaps = [len(bag & set(o.split())) / len(bag | set(o.split())) for o in texts[:300]]
        assert row.overlap == pytest.approx(max(overlaps)) and row.uid == int(np.argmax(overlaps))
        assert row.same == (texts[uid] in texts[:300])
    assert near.overlap[700] == 0 and len(near) == 401


def test_copies_are_those_after_the_cleaning_of_chapter_6():
    "Which defines 'word for word' in its own way: R2Gen's"
    studies = load_studies()
    train, test = (studies[studies.split == part] for part in ("train", "test"))
    copied = test.findings.map(clean_chen).isin(set(train.findings.map(clean_chen)))
    assert copied.mean() == pytest.approx(.47, abs=.005)
    assert eda.nearest_train(studies).same.mean() == pytest.approx(copied.mean(), abs=.005)


def test_the_same_words_in_another_order_are_not_word_for_word():
    findings = ["No mass, lungs clear.", "Lungs clear. No mass."]
    studies = pd.DataFrame(dict(uid=[1, 2], findings=findings, split=["train", "test"]))
    near = eda.nearest_train(studies).iloc[0]
    assert near.overlap == 1 and not near.same


def test_a_wall_of_sentences_that_nobody_counted():
    ax = eda.sentence_wall(["Never said before.", ""], eda.sentence_counts(["No mass."]))
    assert [o.get_width() for o in ax.patches] == [3]
