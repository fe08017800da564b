"Bahdanau attention against its formula, the decoder's two ways of running against each other, and the pointing game by hand."
import numpy as np
import pytest
import torch
from fastai.torch_core import set_seed
from torch import nn
from xraycap.attention import AttentionDecoder, BahdanauAttention, gru_step, mask_places, pointing_game
from xraycap.lstm import masked_loss
from xraycap.text import EOS, PAD, SOS

V = 12


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return AttentionDecoder(V, torch.randn(V, 300), hidden=32, attention=16).eval()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [1, 8])  # 8: many a tanh is 1 or -1
def test_attention_is_the_formula(training, size):
    torch.manual_seed(0)
    attention = BahdanauAttention(8, 5).train(training)
    h, annotations = size * torch.randn(6, 8), size * torch.randn(2, 7, 8)  # two studies, three hypotheses each, seven places
    context, weights = attention(h, attention.keys(annotations), annotations)
    W, b, U, v = (p.detach().double().numpy() for p in (attention.W.weight, attention.W.bias, attention.U.weight, attention.v.weight[0]))
    for n in range(6):
        a = annotations[n // 3].double().numpy()
        e = np.array([v @ np.tanh(W @ h[n].double().numpy() + b + U @ a_i) for a_i in a])
        alpha = np.exp(e) / np.exp(e).sum()
        np.testing.assert_allclose(weights[n].detach(), alpha, atol=1e-6)
        np.testing.assert_allclose(context[n].detach(), alpha @ a, atol=1e-6 * size)


def test_gru_step_is_pytorchs_gru():
    torch.manual_seed(0)
    cell, x, h = nn.GRUCell(10, 6), torch.randn(4, 10), torch.randn(4, 6)
    ours = gru_step(nn.functional.linear(x, cell.weight_ih, cell.bias_ih), nn.functional.linear(h, cell.weight_hh, cell.bias_hh), h)
    torch.testing.assert_close(ours, cell(x, h))


def step_by_step(decoder, features, tokens):
    "Logits (B, T, V) and attention (B, T, 98), a word at a time."
    memory, state = decoder.start(features)
    steps = []
    for words in tokens.T:
        logits, state, weights = decoder.step(words, state, memory)
        steps.append((logits, weights))
    return tuple(torch.stack(x, 1) for x in zip(*steps))


def test_step_by_step_equals_teacher_forcing(decoder):
    features, tokens = torch.rand(3, 98, 1024), torch.randint(3, V, (3, 6))
    tokens[:, 0] = SOS
    logits, weights = step_by_step(decoder, features, tokens)
    assert weights.shape == (3, 6, 98)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 6))
    theirs, looks = decoder(features, tokens, looks=True)
    torch.testing.assert_close(logits, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights, looks, atol=1e-5, rtol=1e-5)


def test_gradients_of_all_steps_at_once_are_those_of_one_step_after_the_other():
    torch.manual_seed(0)
    decoder = AttentionDecoder(V, hidden=32, attention=128, dropout=0.)  # so large that the studies go through in two parts
    features, tokens, targets = torch.rand(30, 98, 1024), torch.randint(3, V, (30, 6)), torch.randint(3, V, (30, 6))

    def gradients(logits, looks):  # of a loss of both
        decoder.zero_grad()
        (masked_loss(logits, targets) - looks[..., 7].log().mean()).backward()
        return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.requires_grad}

    expected, found = gradients(*step_by_step(decoder, features, tokens)), gradients(*decoder(features, tokens, looks=True))
    for name, gradient in expected.items(): torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_memory_is_one_copy_a_study(decoder):
    features, tokens = torch.rand(2, 98, 1024), torch.randint(3, V, (6,))
    memory, _ = decoder.start(features)
    assert [tuple(m.shape) for m in memory] == [(2, 98, 32), (2, 98, 16)]
    h = torch.randn(6, 32)
    logits, _, weights = decoder.step(tokens, (h,), memory)
    for n in range(6):
        alone, _ = decoder.start(features[n // 3:n // 3 + 1])
        expected, _, look = decoder.step(tokens[n:n + 1], (h[n:n + 1],), alone)
        torch.testing.assert_close(logits[n:n + 1], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(weights[n:n + 1], look, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing_before_it(decoder):
    features, tokens = torch.rand(2, 98, 1024), torch.randint(3, V, (2, 5))
    longer = torch.cat([tokens, torch.full((2, 20), PAD)], 1)
    torch.testing.assert_close(decoder(features, longer)[:, :5], decoder(features, tokens))


def test_places_are_told_apart_by_view_row_and_column_only(decoder):
    features, tokens, order = torch.rand(2, 98, 1024), torch.randint(3, V, (2, 5)), torch.randperm(98)
    assert not torch.allclose(decoder(features[:, order], tokens), decoder(features, tokens), atol=1e-4)
    for p in (decoder.view, decoder.row, decoder.column): nn.init.zeros_(p)
    torch.testing.assert_close(decoder(features[:, order], tokens), decoder(features, tokens), atol=1e-4, rtol=1e-4)


def test_a_place_is_its_view_row_and_column():
    "With no features, place 49 + 7 r + c of the memory is the lateral view's vector, row r's and column c's."
    decoder = AttentionDecoder(V, hidden=8, attention=4).eval()
    nn.init.zeros_(decoder.encode.bias)
    (annotations, _), _ = decoder.start(torch.zeros(1, 98, 1024))
    for view in range(2):
        for r in range(7):
            for c in range(7):
                expected = decoder.view[view] + decoder.row[r] + decoder.column[c]
                torch.testing.assert_close(annotations[0, 49 * view + 7 * r + c], expected)


def test_gradient_reaches_everything_but_the_embedding(decoder):
    tokens = torch.randint(3, V, (2, 5))
    masked_loss(decoder(torch.rand(2, 98, 1024), tokens), tokens).backward()
    without = {name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert without == {"embedding.weight"}


def test_dropout_only_in_training(decoder):
    x = torch.rand(2, 98, 1024), torch.randint(3, V, (2, 5))
    assert torch.equal(decoder(*x), decoder(*x))
    decoder.train()
    assert not torch.equal(decoder(*x), decoder(*x))


def test_config_rebuilds_in_float16(decoder):
    again = AttentionDecoder(**decoder.config).eval()
    again.load_state_dict({name: p.half() for name, p in decoder.state_dict().items()})
    x = torch.rand(2, 98, 1024), torch.randint(3, V, (2, 5))
    torch.testing.assert_close(again(*x), decoder(*x), atol=.01, rtol=.01)


def test_shipped_size():
    "As float16, with a vocabulary of 1,500 words, well under 12 MB."
    assert 2 * sum(p.numel() for p in AttentionDecoder(1500).parameters()) < 8e6


def test_it_learns_to_look_at_the_mark():
    "One of 98 places is marked; the word to say is the mark's kind. Attention must find the place without being told."
    set_seed(0)
    rng = np.random.default_rng(0)
    place, kind = rng.integers(0, 98, 256), rng.integers(0, 4, 256)
    features = torch.tensor(rng.random((256, 98, 1024)), dtype=torch.float32)
    for i in range(256): features[i, place[i], [*range(64), *range(64 + 64 * kind[i], 128 + 64 * kind[i])]] += 4.
    words = torch.tensor(kind + 4)
    tokens_in = torch.stack([torch.full_like(words, SOS), words], 1)
    targets = torch.stack([words, torch.full_like(words, EOS)], 1)
    decoder = AttentionDecoder(8, hidden=64, attention=32, dropout=0.)
    optimizer = torch.optim.Adam(decoder.parameters(), 2e-3)
    for step in range(60):
        batch = torch.arange(64) + 64 * (step % 3)
        loss = masked_loss(decoder(features[batch], tokens_in[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    memory, state = decoder.start(features[192:])
    logits, _, weights = decoder.step(tokens_in[192:, 0], state, memory)
    assert (logits.argmax(1) == words[192:]).float().mean() > .9
    assert (weights.argmax(1) == torch.tensor(place[192:])).float().mean() > .9


def test_mask_places_pixel_by_pixel():
    rng = np.random.default_rng(0)
    masks = rng.random((2, 56, 56)) < .01  # places of 8 x 8 pixels
    expected = {49 * view + 7 * (y // 8) + x // 8 for view, y, x in np.argwhere(masks)}
    assert 0 < len(expected) < 98
    assert set(np.flatnonzero(mask_places(tuple(masks)))) == expected


def test_pointing_game_case_by_case():
    "Against a loop over all pairs of cases."
    rng = np.random.default_rng(1)
    n, names = 30, rng.choice(["Nodule", "Opacity", "Edema"], 30)
    looks, places = rng.random((n, 98)), rng.random((n, 98)) < .3
    game = pointing_game(looks, places, names)
    swapped = []
    for name in set(names):
        cases = [i for i in range(n) if names[i] == name]
        hits = [places[i, looks[i].argmax()] for i in cases]
        pairs = [places[i, looks[j].argmax()] for i in cases for j in cases if i != j]
        swapped += [np.mean(pairs)] * len(cases)
        assert game.n[name] == len(cases) and game.hit[name] == pytest.approx(np.mean(hits))
        assert game.chance[name] == pytest.approx(places[cases].mean()) and game.swapped[name] == pytest.approx(np.mean(pairs))
        p, m = np.mean(hits), len(cases)  # Wilson 1927
        middle, half = (p + 1.96**2 / (2 * m)) / (1 + 1.96**2 / m), 1.96 / (1 + 1.96**2 / m) * np.sqrt(p * (1 - p) / m + 1.96**2 / (4 * m**2))
        assert game.low[name] == pytest.approx(middle - half, abs=1e-4) and game.high[name] == pytest.approx(middle + half, abs=1e-4)
    assert game.n["all"] == n and list(game.index)[-1] == "all" and game.swapped["all"] == pytest.approx(np.mean(swapped))


def test_pointing_at_habit_is_told_from_pointing_at_the_patient():
    "Six patients whose finding is in one of two places: who looks at the right one hits; who always looks at the first hits as often swapped."
    places = np.zeros((6, 98), bool)
    places[range(6), [3, 3, 3, 8, 8, 8]] = True
    always = np.tile(np.eye(98)[3], (6, 1))
    right, habit = (pointing_game(looks, places, ["Nodule"] * 6).loc["all"] for looks in (places.astype(float), always))
    assert right.hit == 1 and right.swapped == pytest.approx(.4)  # of the five others, two have it in the same place
    assert habit.hit == .5 and habit.swapped == pytest.approx(.5)


def test_a_finding_that_occurs_once_has_no_others():
    game = pointing_game(np.eye(98)[:3], np.eye(98)[:3] > 0, ["Nodule", "Scar", "Scar"])
    assert np.isnan(game.swapped["Nodule"]) and game.swapped["all"] == 0
