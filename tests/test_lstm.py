"The masked loss by hand, and a decoder whose two ways of running agree."
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.torch_core import set_seed
from xraycap.batches import caption_dls
from xraycap.learner import TokenAccuracy, TokenPerplexity, caption_learner
from xraycap.lstm import LSTMDecoder, masked_loss, perplexity, standardised, surprise
from xraycap.text import PAD, SOS, Vocab

V = 12


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return LSTMDecoder(V, torch.randn(V, 300), hidden=32).eval()


def toy_dls(bs=8, n=40):
    "The image's first numbers say which of four reports belongs to it."
    texts = ["heart normal .", "heart large . effusion .", "clear", "nodule right upper lobe ."]
    rng = np.random.default_rng(0)
    parts = ["train", "train", "val", "train", "val"]
    studies = pd.DataFrame(dict(uid=range(n), findings=[texts[i % 4] for i in range(n)], split=parts * (n // 5)))
    store = {i: (rng.random((98, 1024)) * .1 + 3 * (np.arange(1024) % 4 == i % 4)).astype(np.float16) for i in range(n)}
    vocab = Vocab.from_texts(texts)
    return caption_dls(studies, store, vocab, clean=str, bs=bs, pooled=True, device="cpu"), vocab


def test_masked_loss_by_hand():
    torch.manual_seed(0)
    targets = torch.tensor([[3, 10, 7, 0, 0]])
    logits = torch.randn(1, 5, V)
    p = np.exp(logits[0].double().numpy())
    p /= p.sum(1, keepdims=True)
    by_hand = -(np.log(p[0, 3]) + np.log(p[1, 10]) + np.log(p[2, 7])) / 3
    assert masked_loss(logits, targets).item() == pytest.approx(by_hand, abs=1e-6)
    changed = logits.clone()
    changed[:, 3:] += 100 * torch.randn(1, 2, V)
    assert masked_loss(changed, targets) == masked_loss(logits, targets)


def test_masked_loss_counts_words_not_reports():
    "A long report weighs more than a short one: the mean is over all words of the batch."
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 4, V), torch.tensor([[3, 4, 5, 2], [2, 0, 0, 0]])
    long, short = masked_loss(logits[:1], targets[:1]), masked_loss(logits[1:], targets[1:])
    assert masked_loss(logits, targets).item() == pytest.approx((4 * long + short).item() / 5, abs=1e-6)


def test_step_by_step_equals_teacher_forcing(decoder):
    features, tokens = torch.rand(3, 2048), torch.randint(3, V, (3, 6))
    tokens[:, 0] = SOS
    memory, state = decoder.start(features)
    one_by_one = []
    for t in range(6):
        logits, state, attention = decoder.step(tokens[:, t], state, memory)
        one_by_one.append(logits)
        assert attention is None and all(len(s) == 3 for s in state)
    torch.testing.assert_close(torch.stack(one_by_one, 1), decoder(features, tokens), atol=1e-5, rtol=1e-5)


def test_a_studys_hypotheses_share_its_image(decoder):
    "Two studies with three hypotheses each give what six studies alone would."
    features, tokens = torch.rand(2, 2048), torch.randint(3, V, (6,))
    memory, _ = decoder.start(features)
    state = tuple(torch.randn(6, 32) for _ in range(2))
    logits, _, _ = decoder.step(tokens, state, memory)
    for n in range(6):
        alone, _ = decoder.start(features[n // 3:n // 3 + 1])
        expected, _, _ = decoder.step(tokens[n:n + 1], tuple(s[n:n + 1] for s in state), alone)
        torch.testing.assert_close(logits[n:n + 1], expected, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing_before_it(decoder):
    features, tokens = torch.rand(2, 2048), torch.randint(3, V, (2, 5))
    longer = torch.cat([tokens, torch.full((2, 20), PAD)], 1)
    torch.testing.assert_close(decoder(features, longer)[:, :5], decoder(features, tokens))


def test_image_reaches_every_step(decoder):
    tokens = torch.randint(3, V, (1, 5))
    features = torch.rand(1, 2048, requires_grad=True)
    logits = decoder(features, tokens)
    for t in range(5):
        gradient, = torch.autograd.grad(logits[0, t].square().sum(), features, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_config_rebuilds(decoder):
    again = LSTMDecoder(**decoder.config).eval()
    again.load_state_dict(decoder.state_dict())
    x = torch.rand(2, 2048), torch.randint(3, V, (2, 5))
    assert torch.equal(again(*x), decoder(*x))


def test_wrong_embedding_is_refused():
    with pytest.raises(ValueError, match="embedding"): LSTMDecoder(V, torch.zeros(V + 1, 300))


def test_training_learns_and_leaves_the_embedding_alone(tmp_path):
    set_seed(0)
    dls, vocab = toy_dls()
    decoder = LSTMDecoder(len(vocab), torch.randn(len(vocab), 300), hidden=64, dropout=.1)
    before = {name: p.clone() for name, p in decoder.named_parameters()}
    learn = caption_learner(dls, decoder, folder=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(15, 5e-3)
    with learn.no_bar(), learn.no_logging(): _, accuracy, perplexity = learn.validate()
    assert accuracy > .95 and perplexity < 1.3  # a decoder that ignores the image gets about .6
    changed = {name for name, p in decoder.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(before) - {"embedding.weight"}
    assert (tmp_path / "best.pth").exists()
    best = min(row[-1] for row in learn.recorder.values)
    assert perplexity == pytest.approx(best, rel=1e-5)


def test_early_stopping_on_validation_perplexity():
    set_seed(0)
    dls, vocab = toy_dls()
    learn = caption_learner(dls, LSTMDecoder(len(vocab), hidden=8), lr=0., patience=2)
    with learn.no_bar(), learn.no_logging(): learn.fit(10)
    assert len(learn.recorder.values) == 3  # the first epoch is the best, and two more do not improve on it


def test_metrics_by_hand():
    "One half for each of 2 + 1 true words is a perplexity of 2, whichever way they fall into batches."
    half = torch.full((1, 2, 5), .125).log()
    half[0, :, 4] = np.log(.5)  # word 4 has one half, the other four an eighth each
    metrics = TokenPerplexity(), TokenAccuracy()
    for metric in metrics: metric.reset()
    for y in ([[4, 3]], [[4, PAD]]):
        for metric in metrics: metric.accumulate(SimpleNamespace(pred=half, y=torch.tensor(y)))
    perplexity, accuracy = (metric.value for metric in metrics)
    assert perplexity == pytest.approx((2 * 8 * 2) ** (1 / 3), rel=1e-5) and accuracy == pytest.approx(2 / 3)


def test_a_lone_validation_is_left_alone_by_the_trackers(tmp_path):
    "Before training and after it, with a folder and patience: `validate` gives figures and saves nothing."
    set_seed(0)
    dls, vocab = toy_dls()
    learn = caption_learner(dls, LSTMDecoder(len(vocab), hidden=8), patience=1, folder=tmp_path)
    with learn.no_bar(), learn.no_logging():
        assert len(learn.validate()) == 3 and not list(tmp_path.iterdir())
        learn.fit_one_cycle(2)
        saved = (tmp_path / "best.pth").stat().st_mtime_ns
        assert len(learn.validate()) == 3 and (tmp_path / "best.pth").stat().st_mtime_ns == saved


@pytest.mark.parametrize("bs", [1, 3, 16])
def test_metrics_do_not_depend_on_the_batch_size(bs):
    torch.manual_seed(0)
    dls, vocab = toy_dls(bs)
    decoder = LSTMDecoder(len(vocab), torch.randn(len(vocab), 300), hidden=16).eval()
    nats, right = [], []
    for features, tokens in zip(*zip(*[(dls.valid.dataset[i]) for i in range(len(dls.valid.dataset))])):
        logits = decoder(torch.tensor(features)[None], torch.tensor(tokens)[None, :-1])[0].detach().double().numpy()
        for row, word in zip(logits, tokens[1:]):
            nats.append(np.log(np.exp(row).sum()) - row[word])
            right.append(row.argmax() == word)
    learn = caption_learner(dls, decoder)
    with learn.no_bar(), learn.no_logging(): _, accuracy, perplexity = learn.validate()
    assert accuracy == pytest.approx(np.mean(right), abs=1e-9)
    assert perplexity == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)


@pytest.mark.parametrize("shift", [0, 1])
def test_surprise_a_study_at_a_time(shift):
    "What a batch costs each study is what it pays alone, with its own image or its neighbour's."
    torch.manual_seed(0)
    dls, vocab = toy_dls()
    decoder = LSTMDecoder(len(vocab), torch.randn(len(vocab), 300), hidden=16).eval()
    nats, words = surprise(decoder, dls.valid, shift)
    items = [dls.valid.dataset[i] for i in range(16)]
    for i, (_, tokens) in enumerate(items):
        image = items[i // 8 * 8 + (i - shift) % 8][0]  # batches of 8
        logits = decoder(torch.tensor(image)[None], torch.tensor([tokens[:-1]]))[0].detach().double().numpy()
        expected = sum(np.log(np.exp(row).sum()) - row[word] for row, word in zip(logits, tokens[1:]))
        assert nats[i] == pytest.approx(expected, rel=1e-5) and words[i] == len(tokens) - 1
    assert perplexity(decoder, dls.valid, shift) == pytest.approx(np.exp(nats.sum() / words.sum()))


def test_standardised_goes_by_the_rows_it_is_given():
    rng = np.random.default_rng(0)
    like, rows = rng.normal(3, 2, (500, 4)), rng.normal(5, 4, (7, 4))
    like[:, 3] = 1  # an entry that never changes does not become infinite
    mended = standardised(rows, like)
    for row, new in zip(rows, mended):
        for j in range(3):
            column = like[:, j].tolist()
            mean = sum(column) / 500
            spread = (sum((x - mean) ** 2 for x in column) / 500) ** .5
            assert new[j] == pytest.approx((row[j] - mean) / spread, rel=1e-4)
    assert np.isfinite(mended).all()
