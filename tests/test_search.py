"""Search against an exhaustive one, against greedy, and against itself on other batches.

The plain searches and the fast ones, of xraycap.fast, have to pass the same tests."""
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from xraycap import fast, search
from xraycap.attention import AttentionDecoder
from xraycap.lstm import LSTMDecoder
from xraycap.text import EOS, PAD, SOS, UNK

V, WORDS = 7, [4, 5, 6]


def make(cls, seed, vocab_size=V, eos=0.):
    "A decoder with large random weights, so that its probabilities are far from even, and features for it."
    torch.manual_seed(seed)
    model = cls(vocab_size, torch.randn(vocab_size, 300), hidden=16)
    for p in model.parameters(): p.data.mul_(2.5)
    model.output.bias.data[EOS] += eos
    shape = (5, 1, 2048) if cls.pooled else (5, 98, 1024)
    images = 2 * torch.randn(5, 1, shape[-1]) + torch.randn(shape)  # a study's places are alike, studies are not
    return model.eval(), images[:, 0] if cls.pooled else images


@pytest.fixture(params=[search, fast], ids=["plain", "fast"])
def searches(request):
    "A module with `greedy_search` and `beam_search`."
    return request.param


both = pytest.mark.parametrize("cls", [LSTMDecoder, AttentionDecoder])
seeds = pytest.mark.parametrize("seed", range(4))


def log_probability(model, features, words):
    "Sum of the words' log-probabilities, one step at a time for one study, over the words that may be said."
    memory, state = model.start(features[None])
    words_to_say = [w for w in range(model.config["vocab_size"]) if w not in (PAD, SOS, EOS, UNK)]
    total, previous, allowed = 0., SOS, [EOS, *words_to_say]
    with torch.no_grad():
        for word in words:
            logits, state, _ = model.step(torch.tensor([previous]), state, memory)
            p = np.exp(logits[0].double().numpy())
            total, previous = total + np.log(p[word] / p[allowed].sum()), word
    return total


def exhaustive(model, features, max_len):
    "The report of highest log-probability a prediction, of all reports there are."
    every = [w + (EOS,) for n in range(max_len) for w in itertools.product(WORDS, repeat=n)]
    every += list(itertools.product(WORDS, repeat=max_len))
    scored = [(log_probability(model, features, words), words) for words in every]
    logp, words = max(scored, key=lambda s: s[0] / len(s[1]))
    return [w for w in words if w != EOS], logp, logp / len(words)


@both
@seeds
def test_wide_beam_is_exhaustive_search(searches, cls, seed):
    model, features = make(cls, seed, eos=seed - 2.)
    for max_len in (1, 3):
        for x, found in zip(features, searches.beam_search(model, features, k=200, max_len=max_len)):
            words, logp, score = exhaustive(model, x, max_len)
            assert found.tokens == words
            assert found.logp == pytest.approx(logp, abs=1e-4) and found.score == pytest.approx(score, abs=1e-4)


@both
@seeds
def test_beam_of_one_is_greedy(searches, cls, seed):
    model, features = make(cls, seed, vocab_size=40, eos=seed)
    beams = searches.beam_search(model, features, k=1, max_len=20)
    for one, greedy in zip(beams, searches.greedy_search(model, features, max_len=20)):
        assert one.tokens == greedy.tokens
        assert one.logp == pytest.approx(greedy.logp, abs=1e-4) and one.score == pytest.approx(greedy.score, abs=1e-4)
        if cls is AttentionDecoder: np.testing.assert_allclose(one.attention, greedy.attention, atol=1e-5)


@both
@seeds
def test_log_probability_and_greedy_choice_step_by_step(searches, cls, seed):
    model, features = make(cls, seed, vocab_size=40, eos=1.)
    for find in (searches.greedy_search, searches.beam_search):
        for x, found in zip(features, find(model, features, max_len=12)):
            finished = len(found.tokens) < 12
            predictions = found.tokens + [EOS] * finished
            assert found.logp == pytest.approx(log_probability(model, x, predictions), abs=1e-4)
            assert found.score == pytest.approx(found.logp / len(predictions), abs=1e-6)


@both
@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_study_alone_or_in_a_batch(searches, cls, k):
    for seed in range(20):  # until reports end at different steps
        model, features = make(cls, seed, vocab_size=40, eos=2.)
        together = searches.beam_search(model, features, k=k, max_len=20)
        if len({len(h.tokens) for h in together}) > 1: break
    else: pytest.fail("no model whose reports differ in length")
    for x, h in zip(features, together):
        alone, = searches.beam_search(model, x[None], k=k, max_len=20)
        assert alone.tokens == h.tokens and alone.logp == pytest.approx(h.logp, abs=1e-4)


@both
def test_a_wider_beam_finds_no_worse_report_on_average(searches, cls):
    model, features = make(cls, 0, vocab_size=40, eos=2.)
    scores = [np.mean([h.score for h in searches.beam_search(model, features, k=k, max_len=12)]) for k in (1, 3, 30)]
    assert scores[0] <= scores[1] + 1e-6 and scores[1] <= scores[2] + 1e-6


class Tree(nn.Module):
    "A decoder of known probabilities: `table` maps the words so far to the next word's probabilities."
    def __init__(self, table):
        super().__init__()
        self.table, self.device = table, nn.Parameter(torch.zeros(1))

    def start(self, features):
        return (features,), (torch.zeros(len(features), 0, dtype=torch.long),)

    def step(self, tokens, state, memory):
        said = torch.cat([state[0], tokens[:, None]], 1)
        logits = torch.full((len(tokens), V), -1e9)
        for row, words in zip(logits, said.tolist()):
            for word, p in self.table.get(tuple(words[1:]), {EOS: 1.}).items(): row[word] = np.log(p)
        return logits, (said,), None


def test_beam_finds_what_greedy_misses(searches):
    "The likelier first word (.6) leads to unlikely reports; the other (.4) to a certain one."
    tree = Tree({(): {4: .6, 5: .4}, (4,): {4: .4, 5: .3, 6: .3}, (5,): {6: 1.}})
    features = torch.zeros(2, 1)
    assert searches.greedy_search(tree, features)[0].tokens == [4, 4]
    found = searches.beam_search(tree, features, k=2)[0]
    assert found.tokens == [5, 6] and found.logp == pytest.approx(np.log(.4), abs=1e-5)


def test_a_finished_report_is_kept(searches):
    "A short report ends early with the best score; the beam goes on with worse ones and must not lose it."
    tree = Tree({(): {EOS: .5, 4: .5}, (4,): {4: .5, 5: .5}, (4, 4): {4: .6, 6: .4}, (4, 5): {4: .5, 6: .5}})
    found, = searches.beam_search(tree, torch.zeros(1, 1), k=3)
    assert found.tokens == [4, 4, 4]  # .15 in 4 predictions beats .5 in 1
    tree.table[()] = {EOS: .7, 4: .3}
    assert searches.beam_search(tree, torch.zeros(1, 1), k=3)[0].tokens == []


@both
def test_only_words_are_said(searches, cls):
    model, features = make(cls, 0)
    model.output.bias.data[[PAD, SOS, UNK]] += 1000.
    for find in (searches.greedy_search, searches.beam_search):
        for h in find(model, features, max_len=10): assert set(h.tokens) <= set(WORDS)


@both
def test_max_len_ends_a_report(searches, cls):
    model, features = make(cls, 0, eos=-1000.)
    for find in (searches.greedy_search, searches.beam_search):
        for h in find(model, features, max_len=9): assert len(h.tokens) == 9


def test_attention_is_that_of_the_words_said(searches):
    model, features = make(AttentionDecoder, 2, vocab_size=40, eos=1.)
    for find in (searches.greedy_search, searches.beam_search):
        for x, h in zip(features, find(model, features, max_len=12)):
            assert h.attention.shape == (len(h.tokens), 98)
            memory, state = model.start(x[None])
            for previous, look in zip([SOS] + h.tokens, h.attention):
                with torch.no_grad(): _, state, weights = model.step(torch.tensor([previous]), state, memory)
                np.testing.assert_allclose(look, weights[0], atol=1e-5)


@both
def test_mode_is_put_back_and_nothing_needs_gradients(searches, cls):
    model, features = make(cls, 0)
    model.train()
    first, second = (searches.beam_search(model, features.numpy(), max_len=5) for _ in range(2))
    assert [h.tokens for h in first] == [h.tokens for h in second]  # no dropout
    assert model.training and all(p.grad is None for p in model.parameters())
    model.step = None
    with pytest.raises(TypeError): searches.greedy_search(model, features)
    assert model.training


def test_impossible_widths_and_lengths_are_named(searches):
    model, features = make(LSTMDecoder, 0)
    with pytest.raises(ValueError, match="k is 0"): searches.beam_search(model, features, k=0)
    for find in (searches.greedy_search, searches.beam_search):
        with pytest.raises(ValueError, match="max_len is 0"): find(model, features, max_len=0)
