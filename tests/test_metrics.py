"BLEU, ROUGE-L and CIDEr against other programs, and what the baselines score"
import itertools
import random
import shutil
import sys
import time
import types
import warnings

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu as nltk_bleu, sentence_bleu
from sacrebleu.metrics import BLEU

from xraycap.metrics import (
    best_constant, bootstrap, cider, cider_each, corpus_bleu, meteor, most_common, ngrams, old_sentence_bleu, rouge_l,
    shuffled_bleu4)
from xraycap.studies import load_studies
from xraycap.text import clean_chen


def noisy(texts, seed=0):
    "Words dropped, replaced, rotated, cut; every tenth report of another patient"
    rng, out = random.Random(seed), []
    for text in texts:
        words = text.split()
        if rng.random() < .1: words = rng.choice(texts).split()
        words = [rng.choice(rng.choice(texts).split()) if rng.random() < .1 else w for w in words if rng.random() > .1]
        if rng.random() < .2:
            i = rng.randrange(len(words) + 1)
            words = words[i:] + words[:i]
        if rng.random() < .1: words = words[:4 + rng.randrange(12)]
        out.append(" ".join(words))
    return out


@pytest.fixture(scope="module")
def chen():
    studies = load_studies().sort_values("uid")
    texts = studies.findings.map(clean_chen)
    return texts[studies.split == "train"].tolist(), texts[studies.split == "test"].tolist()


@pytest.fixture(scope="module")
def pair(chen): return chen[1][:500], noisy(chen[1][:500])


def test_bleu_equals_nltk_and_sacrebleu(pair):
    references, hypotheses = pair
    ours = corpus_bleu(references, hypotheses)
    for n in range(1, 5):
        nltk = nltk_bleu([[r.split()] for r in references], [h.split() for h in hypotheses], weights=[1 / n] * n)
        bleu = BLEU(tokenize="none", smooth_method="none", max_ngram_order=n, force=True)
        sacre = bleu.corpus_score(hypotheses, [references]).score
        assert ours[n-1] == pytest.approx(nltk, abs=1e-9) == pytest.approx(sacre / 100, abs=1e-9)


def test_published_figures_of_pycocoevalcap(pair):
    "pycocoevalcap 1.2 printed these for the same 500 pairs"
    assert corpus_bleu(*pair) == pytest.approx([.71207, .62964, .56278, .50488], abs=5e-5)
    assert rouge_l(*pair) == pytest.approx(.72331, abs=5e-5)
    assert cider(*pair) == pytest.approx(3.76726, abs=5e-5)


def test_bleu_by_hand():
    # 1-grams: the (twice of three), cat; 2-grams: the cat
    bleu = corpus_bleu(["the cat saw the dog"], ["the the the cat"])
    assert bleu[0] == pytest.approx(np.exp(1 - 5 / 4) * 3 / 4)
    assert bleu[1] == pytest.approx(np.exp(1 - 5 / 4) * (3 / 4 * 1 / 3) ** .5)
    assert bleu[2:] == [0, 0]


def test_totals_are_summed_before_dividing():
    references, hypotheses = ["a b c d", "a b c d e f g h"], ["a b c d", "x x x x x x x x"]
    products = np.cumprod([4 / 12, 3 / 10, 2 / 8, 1 / 6])
    assert corpus_bleu(references, hypotheses) == pytest.approx(products ** (1 / np.arange(1, 5)))


def test_ngrams_are_numbered():
    assert ngrams("") == [] and len(ngrams("no effusion , no edema")) == 5 + 4 + 3 + 2
    assert [gram for gram in ngrams("no effusion no effusion") if len(gram[0]) == 2] == [
        (("no", "effusion"), 1), (("effusion", "no"), 1), (("no", "effusion"), 2)]


def test_the_old_sentence_bleu():
    "NLTK 3.2's figure of its issue 2245; where all orders match, today's figure; letters by letters"
    assert old_sentence_bleu(["the cat is sitting on the mat"], "on the mat is a cat") == pytest.approx(.4548, abs=5e-5)
    references = ["the lungs are clear today .", "lungs are clear and well ."]
    text = "lungs are clear and so is the heart ."
    today = sentence_bleu([r.split() for r in references], text.split())
    assert old_sentence_bleu(references, text) == pytest.approx(today) and 0 < today < 1
    assert old_sentence_bleu([*"the"], "t h e") == 1
    assert old_sentence_bleu(["a b"], "") == old_sentence_bleu(["a b"], "c d") == 0


def test_long_hypotheses_have_no_penalty():
    assert corpus_bleu(["a b c d"], ["a b c d e f g h"])[0] == pytest.approx(.5)


def test_ngrams_do_not_cross_reports():
    assert corpus_bleu(["a b", "c d"], ["a b", "c d"]) == pytest.approx([1, 1, 0, 0])


@pytest.mark.parametrize("metric", [corpus_bleu, rouge_l, cider])
def test_empty_texts_score_zero(metric):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for references, hypotheses in [(["a b"], [""]), ([""], ["a b"]), (["", "a"], ["", ""])]:
            assert not np.any(metric(references, hypotheses))


@pytest.mark.parametrize("metric", [corpus_bleu, rouge_l, cider, meteor, bootstrap, shuffled_bleu4])
@pytest.mark.parametrize("references, hypotheses", [
    ("a b", "a b"), (["a b"], "a b"), ([["a", "b"]], [["a", "b"]]), (["a"], ["a", "b"]), ([], [])])
def test_wrong_shapes_are_refused(metric, references, hypotheses):
    with pytest.raises(ValueError) as error: metric(references, hypotheses)
    assert "\n" not in str(error.value)


def test_order_of_studies_does_not_matter(pair):
    order = random.Random(1).sample(range(500), 500)
    moved = [[texts[i] for i in order] for texts in pair]
    assert corpus_bleu(*moved) == pytest.approx(corpus_bleu(*pair))
    assert rouge_l(*moved) == pytest.approx(rouge_l(*pair)) and cider(*moved) == pytest.approx(cider(*pair))


def test_rouge_l_by_trying_all_subsequences():
    def longest(a, b):
        subsequences = {s for n in range(len(b) + 1) for s in itertools.combinations(b, n)}
        return max(n for n in range(len(a) + 1) for s in itertools.combinations(a, n) if s in subsequences)
    rng = random.Random(0)
    for _ in range(30):
        a, b = [[rng.choice("abcd") for _ in range(rng.randrange(1, 9))] for _ in range(2)]
        n = longest(a, b)
        p, r = n / len(b), n / len(a)
        expected = (1 + 1.44) * p * r / (r + 1.44 * p) if n else 0
        assert rouge_l([" ".join(a)], [" ".join(b)]) == pytest.approx(expected)


def test_cider_rewards_rare_words():
    references = ["clear lungs no effusion today", "clear lungs no effusion seen", "clear lungs big nodule right"]
    common = cider(references, ["clear lungs"] * 3)
    assert common == 0  # everybody says it
    assert cider(references, references) == pytest.approx(10)
    assert cider_each(references, references[:2] + ["clear lungs"]) == pytest.approx([10, 10, 0])


@pytest.fixture
def meteor_program(monkeypatch):
    "A module in pycocoevalcap's place that keeps what it is asked, and a `java` that is found"
    asked = []
    class Meteor:
        def compute_score(self, gts, res):
            asked.append((gts, res))
            return .25, [.25] * len(gts)
    module = types.ModuleType("pycocoevalcap.meteor.meteor")
    module.Meteor = Meteor
    for name in ("pycocoevalcap", "pycocoevalcap.meteor"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("xraycap.metrics.subprocess.run", lambda command, **kw: None)
    return asked


def test_meteor_hands_over_one_line_a_study(meteor_program):
    assert meteor(["a\nb  c", "d"], ["a ||| b", ""]) == .25
    assert meteor_program == [({0: ["a b c"], 1: ["d"]}, {0: ["a b"], 1: [""]})]


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 1\n"])  # none, and one that only says where to get Java
def test_no_meteor_without_java(monkeypatch, tmp_path, script):
    for name in ("pycocoevalcap", "pycocoevalcap.meteor"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", types.SimpleNamespace(Meteor=None))
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "java").write_text(script)
        (tmp_path / "java").chmod(0o755)
    assert meteor(["a"], ["a"]) is None


def test_no_meteor_without_its_program(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", None)
    assert meteor(["a"], ["a"]) is None


@pytest.mark.slow
def test_meteor_itself(pair):
    "What METEOR 1.5 prints for the first pair, and that equal texts score 1 and unlike texts 0"
    pytest.importorskip("pycocoevalcap.meteor.meteor")
    if not shutil.which("java"): pytest.skip("needs Java")
    assert meteor(["the heart is normal in size ."], ["heart size is normal ."]) == pytest.approx(.36914, abs=5e-5)
    assert meteor(["a b"], ["a b"]) == 1 and meteor(["a b"], ["c d"]) == 0
    assert meteor(["small effusion ."], ["small effusions ."]) > meteor(["small effusion ."], ["small nodules ."])
    references, hypotheses = pair
    shifted = hypotheses[1:] + hypotheses[:1]
    assert meteor(references, references) > .99 > meteor(references, hypotheses) > meteor(references, shifted)


@pytest.mark.slow
def test_equal_to_pycocoevalcap(pair):
    pytest.importorskip("pycocoevalcap.bleu.bleu")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    references, hypotheses = ({i: [t] for i, t in enumerate(texts)} for texts in pair)
    assert corpus_bleu(*pair) == pytest.approx(Bleu(4).compute_score(references, hypotheses, verbose=0)[0], abs=5e-5)
    assert rouge_l(*pair) == pytest.approx(Rouge().compute_score(references, hypotheses)[0], abs=5e-5)
    assert cider(*pair) == pytest.approx(Cider().compute_score(references, hypotheses)[0], abs=5e-5)


def test_590_reports_in_half_a_second(chen):
    hypotheses = noisy(chen[1])
    times = []
    for _ in range(5):
        start = time.process_time()
        corpus_bleu(chen[1], hypotheses)
        times.append(time.process_time() - start)
    assert min(times) < .5


def test_most_common():
    assert most_common(["b", "a", "c", "b", "a"]) == "a"


def test_best_constant_is_the_best_of_train():
    references = noisy(["a b c d e f g", "a b c d e x", "c d e f g h"] * 5)
    scores = {t: corpus_bleu(references, [t] * len(references))[3] for t in references}
    best = best_constant(references)
    assert scores[best] == pytest.approx(max(scores.values())) and scores[best] > 0
    assert best_constant(references, ["a b c d", "x y", "a b c d e"]) == "a b c d e"  # of these, whoever said them


def test_constant_on_the_chen_split(chen):
    "The figures of a report that is said of every patient, which a model has to beat"
    train, test = chen
    constant = [best_constant(train)] * len(test)
    assert corpus_bleu(test, constant) == pytest.approx([.500, .338, .240, .172], abs=.005)
    assert rouge_l(test, constant) == pytest.approx(.363, abs=.005)
    assert cider(test, constant) == pytest.approx(.285, abs=.005)


def test_bootstrap_against_a_plain_loop(pair):
    references, hypotheses = pair
    rng = random.Random(0)
    scores = []
    for _ in range(60):
        draw = [rng.randrange(500) for _ in range(500)]
        scores.append(corpus_bleu([references[i] for i in draw], [hypotheses[i] for i in draw])[3])
    assert bootstrap(references, hypotheses) == pytest.approx(tuple(np.percentile(scores, [2.5, 97.5])), abs=.01)
    assert bootstrap(references, hypotheses, seed=3) == bootstrap(references, hypotheses, seed=3)


def test_shuffling(pair):
    references, hypotheses = pair
    assert shuffled_bleu4(references, hypotheses) < corpus_bleu(references, hypotheses)[3] - .3
    constant = [references[0]] * 500
    assert shuffled_bleu4(references, constant) == pytest.approx(corpus_bleu(references, constant)[3])
    assert shuffled_bleu4(references, hypotheses, seed=1) == shuffled_bleu4(references, hypotheses, seed=1)
