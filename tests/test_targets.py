"Reports put together from sentences: consensus and composed reports"
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from xraycap import metrics, targets
from xraycap.mesh import FINDINGS
from xraycap.targets import composed_reports, consensus_reports, report_weights

said = ["the lungs are clear . heart size is normal . no pleural effusion ."] * 4 + [
    "there is a small left pleural effusion . heart size is normal .",
    "there is a large right pleural effusion . heart size is normal .",
    "the heart is enlarged . the lungs are clear . no pleural effusion ."]
coded = [["normal"]] * 4 + [["Pleural Effusion/left/small"], ["Pleural Effusion/right/large"], ["Cardiomegaly"]]


@pytest.mark.parametrize("codes,must,may_not", [
    ("normal", {"heart size is normal .", "the lungs are clear ."}, {"left", "right", "enlarged"}),
    ("Pleural Effusion/left/small", {"there is a small left pleural effusion ."}, {"right", "no pleural effusion"}),
    ("Pleural Effusion/right", {"there is a large right pleural effusion ."}, {"left", "no pleural effusion"}),
    ("Cardiomegaly", {"the heart is enlarged ."}, {"heart size is normal", "left", "right"}),
    ("Cardiomegaly;Pleural Effusion/left",  # nobody had both
     {"the heart is enlarged .", "there is a small left pleural effusion ."},
     {"heart size is normal", "no pleural effusion"}),
])
def test_a_composed_report_says_what_is_there_and_denies_none_of_it(codes, must, may_not):
    composed, = composed_reports(said, coded, [codes.split(";")])
    assert all(line in composed for line in must) and not any(words in composed for words in may_not), composed
    lines = [f"{line} ." for line in composed.removesuffix(" .").split(" . ")]
    assert len(set(lines)) == len(lines) and set(lines) <= {line for text in said for line in targets._lines(text)}


def test_a_composed_report_is_the_best_choice_of_sentences_there_is():
    "Against every set of sentences that speaks of no subject twice"
    composer, wanted = targets._Composer(said), {"Pleural Effusion"}
    grams, sentences = composer.grams, composer.sentences
    weights, = report_weights(coded, [["Pleural Effusion/left/small"]])
    gain = grams.in_reports @ weights / targets._precision[grams.order]
    names = 20 * (sentences.names @ np.where(np.isin(FINDINGS, list(wanted)), 1, -1))
    has = Counter(gram for text in said for gram in metrics.ngrams(text))  # in how many texts

    def rare(text, n):
        return {g: np.log(len(said) / has[g]) for g in metrics.ngrams(text) if g in has and len(g[0]) == n}

    def cosine(one, other, n):
        x, y = rare(one, n), rare(other, n)
        length = np.linalg.norm([*x.values()]) * np.linalg.norm([*y.values()])
        return sum(x[g] * y.get(g, 0) for g in x) / max(1e-9, length)

    def allowed(chosen):
        denied = any("no pleural" in sentences.lines[i] for i in chosen)
        return (sentences.subjects[chosen].sum(0) <= 1).all() and not denied

    def value(chosen):
        text = sentences.report(chosen)
        bleu = sum((gain[grams.number[g]] if g in grams.number else 0) - targets._price[len(g[0]) - 1]
                   for g in metrics.ngrams(text))
        cosines = np.mean([[cosine(text, other, n) for n in range(1, 5)] for other in said], 1)
        worth = bleu + 600 * cosines @ weights
        assert targets._Worth(grams, weights)(text) == pytest.approx(worth)
        return worth + names[chosen].sum()

    everything = range(len(sentences.lines))
    values = {c: value(list(c)) for n in range(1, 5) for c in combinations(everything, n) if allowed(list(c))}
    *_, (_, worth) = steps = list(composer.steps(weights, wanted))
    best = max(values, key=values.get)
    assert sorted(i for i, _ in steps) == list(best) and worth == pytest.approx(values[best]) and len(values) > 20


def test_report_weights_are_a_ridge_regression():
    counts = np.array([[text.count("."), text.count("the")] for text in said])
    x = TfidfVectorizer(analyzer=targets._visible_parts, binary=True).fit(coded)
    asked = [["Cardiomegaly"], ["normal"], ["Pleural Effusion/left", "Cardiomegaly"]]
    theirs = Ridge(alpha=3).fit(x.transform(coded).toarray(), counts).predict(x.transform(asked).toarray())
    weights = report_weights(coded, asked)
    np.testing.assert_allclose(weights @ counts, theirs, rtol=1e-9)
    np.testing.assert_allclose(weights.sum(1), 1)


def test_the_consensus_is_the_medoid_of_those_with_the_same_codes():
    assert consensus_reports(said, coded, [["normal"], ["Cardiomegaly"]], k=1) == [said[0], said[-1]]
