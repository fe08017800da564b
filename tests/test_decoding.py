"xraycap.decoding: draws against exact distributions and against transformers, beams against chapter 12's."
import numpy as np
import pytest
import torch
from test_search import log_probability, make

from xraycap.attention import AttentionDecoder
from xraycap.decoding import best_report, diverse_beams, sample, temper
from xraycap.lstm import LSTMDecoder, greedy_search
from xraycap.search import beam_search, beam_tree
from xraycap.text import EOS
from xraycap.transformer import TransformerDecoder

both = pytest.mark.parametrize("cls", [LSTMDecoder, AttentionDecoder])


def test_what_is_kept_by_hand():
    p = torch.tensor([[.4, .1, .3, .2], [.97, .01, .01, .01]])
    def kept(**how): return (temper(p.log(), **how) > -torch.inf).tolist()
    assert kept(top_k=2)[0] == [True, False, True, False]
    assert kept(top_p=.65) == [[True, False, True, False], [True, False, False, False]]
    assert kept(top_p=.75)[0] == [True, False, True, True]
    torch.testing.assert_close(temper(p.log(), 2).exp(), p.sqrt() / p.sqrt().sum(1, keepdim=True))
    torch.testing.assert_close(temper(p.log(), top_p=.65).exp()[0], torch.tensor([4 / 7, 0, 3 / 7, 0]))


@pytest.mark.parametrize("temperature, top_k, top_p", [(.7, 5, .8), (1.5, None, .6), (1, 50, 1), (.3, 1, .1)])
def test_what_is_kept_is_what_transformers_keep(temperature, top_k, top_p):
    generation = pytest.importorskip("transformers").generation
    logits = 3 * torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    want = generation.TemperatureLogitsWarper(float(temperature))(None, logits)
    if top_k: want = generation.TopKLogitsWarper(top_k)(None, want)
    want = generation.TopPLogitsWarper(top_p)(None, want).softmax(-1)
    torch.testing.assert_close(temper(logits.log_softmax(-1), temperature, top_k, top_p).exp(), want)


@pytest.mark.parametrize("how", [dict(temperature=0), dict(temperature=-1), dict(temperature=float("nan")),
                                 dict(top_k=0), dict(top_p=0), dict(top_p=1.1)])
def test_knobs_that_do_not_exist(how):
    with pytest.raises(ValueError, match="must be"): temper(torch.zeros(1, 4), **how)


@pytest.mark.parametrize("cls", [LSTMDecoder, AttentionDecoder, TransformerDecoder])
def test_cold_is_greedy(cls):
    if cls is TransformerDecoder:
        torch.manual_seed(0)
        model, features = TransformerDecoder(7, hidden=16, heads=2, layers=1).eval(), torch.randn(5, 98, 1024)
    else: model, features = make(cls, 0)
    for cold, greedy in zip(sample(model, features, 1e-5, max_len=9), greedy_search(model, features, max_len=9)):
        assert cold.tokens == greedy.tokens
        assert (cold.logp, cold.score) == pytest.approx((greedy.logp, greedy.score), abs=1e-4)
        if greedy.attention is not None: np.testing.assert_allclose(cold.attention, greedy.attention, atol=1e-5)


@both
@pytest.mark.parametrize("how", [{}, dict(temperature=.6), dict(top_k=2), dict(top_p=.7)])
def test_draws_have_the_decoders_distribution(cls, how):
    "A chi-square bound that a fair generator passes 999 times in 1000, for the first two words of one study."
    from scipy.stats import chi2
    model, features = make(cls, 1)
    with torch.inference_mode():
        memory, state = model.start(features[:1])
        logits, state, _ = model.step(torch.tensor([1]), state, memory)
        allowed = [EOS, 4, 5, 6]
        first = temper(logits[:, allowed].log_softmax(-1), **how).exp()[0].tolist()
        exact = {(EOS,): first[0]}
        for word, p in zip(allowed[1:], first[1:]):
            logits, _, _ = model.step(torch.tensor([word]), state, memory)
            second = temper(logits[:, allowed].log_softmax(-1), **how).exp()[0].tolist()
            exact |= {(word, other): p * q for other, q in zip(allowed, second)}
    n = 2000
    found = [(*h.tokens, EOS)[:2] if len(h.tokens) < 2 else tuple(h.tokens)
             for h in sample(model, features[:1].repeat(n, *[1] * (features.ndim - 1)), max_len=2, seed=3, **how)]
    likely = {words: p for words, p in exact.items() if p > 0}
    assert set(found) <= set(likely)
    often = {words: p for words, p in likely.items() if n * p >= 5}
    seen = [found.count(words) for words in often] + [sum(words not in often for words in found)]
    expected = n * np.array([*often.values(), 1 - sum(often.values())])
    statistic = sum((o - e)**2 / e for o, e in zip(seen, expected) if e > 1)
    assert statistic < chi2.ppf(.999, max(len(often) - 1, 1))


@both
def test_logp_is_the_models_own(cls):
    model, features = make(cls, 2)
    for x, h in zip(features, sample(model, features, .5, top_k=2, max_len=6)):
        words = (h.tokens + [EOS])[:6]
        assert h.logp == pytest.approx(log_probability(model, x, words), abs=1e-4)
        assert h.score == pytest.approx(h.logp / len(words))


def test_a_seed_is_a_report():
    model, features = make(AttentionDecoder, 0, vocab_size=50)
    def say(seed): return [h.tokens for h in sample(model, features, seed=seed)]
    assert say(1) == say(1) != say(2)


@both
@pytest.mark.parametrize("k", [1, 3])
def test_beams_without_a_penalty_are_chapter_12s(cls, k):
    model, features = make(cls, 3)
    for x in features:
        done, _ = beam_tree(model, x, k, max_len=8)
        for group in diverse_beams(model, x, groups=2, k=k, penalty=0, max_len=8):
            assert [n.words for n in group] == [n.words for n in done]
            assert [n.logp for n in group] == pytest.approx([n.logp for n in done], abs=1e-4)


@both
def test_a_large_penalty_keeps_first_words_apart(cls):
    model, features = make(cls, 4)
    for x in features:
        first, *others = diverse_beams(model, x, groups=4, k=1, penalty=1e6, max_len=5)
        assert len({group[0].words[1] for group in (first, *others)}) == 4  # the words that may be said: EOS and three
        for group in (first, *others):
            words = group[0].words[1:]
            assert group[0].logp == pytest.approx(log_probability(model, x, words), abs=1e-3)
        assert first[0].words == beam_tree(model, x, 1, max_len=5)[0][0].words


def test_numbers_of_beams_that_do_not_exist():
    for how in dict(k=0), dict(groups=0):
        with pytest.raises(ValueError, match="1 or more"): diverse_beams(*make(LSTMDecoder, 0), **how)


@both
def test_a_prior_for_the_length(cls):
    model, features = make(cls, 5)
    for x, found in zip(features, beam_search(model, features, k=5, max_len=8)):
        done, _ = beam_tree(model, x, 5, max_len=8)
        assert best_report(done).tokens == found.tokens and best_report(done).score == pytest.approx(found.score)
        assert best_report(done, 0).logp == max(node.logp for node in done)
        assert len(best_report(done, 50).tokens) >= len(best_report(done, 0).tokens)
