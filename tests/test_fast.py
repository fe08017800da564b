"The fast twins against the plain code of the chapters before: the same outputs, the same gradients, the same reports."
import copy

import numpy as np
import pytest
import torch

from xraycap import fast, search
from xraycap.attention import AttentionDecoder
from xraycap.fast import FastAttentionDecoder, fast_decoder
from xraycap.lstm import LSTMDecoder, masked_loss
from xraycap.text import EOS, PAD, SOS
from xraycap.transformer import TransformerDecoder

V = 40


def make(cls=AttentionDecoder, eos=2.0, **kwargs):
    "A decoder with probabilities far from even, and features for it."
    torch.manual_seed(0)
    model = cls(V, torch.randn(V, 300), hidden=32, dropout=0.0, **kwargs)
    for p in model.parameters(): p.data.mul_(2.0)
    model.output.bias.data[EOS] += eos
    shape = (9, 1, 2048) if cls.pooled else (9, 98, 1024)
    images = torch.randn(9, 1, shape[-1]) + torch.randn(shape)
    return model, images[:, 0] if cls.pooled else images


def batch(n=9, length=12):
    tokens = torch.randint(PAD + 1, V, (n, length))
    tokens[:, 0], tokens[2, 8:] = SOS, PAD
    return tokens[:, :-1], tokens[:, 1:]


def test_outputs_and_gradients_are_the_plain_decoders():
    plain, features = make()
    tokens, targets = batch()
    found = []
    for decoder in (plain, fast_decoder(plain)):
        decoder.zero_grad()
        features = features.detach().clone().requires_grad_()
        logits, attention = decoder.forward_with_attention(features, tokens)
        assert torch.equal(decoder(features, tokens), logits)
        (masked_loss(logits, targets) - attention[..., 7].clamp_min(1e-9).log().mean()).backward()  # a loss of both
        gradients = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}
        found.append((logits, attention, features.grad, gradients))
    (logits, attention, of_features, gradients), ours = found
    torch.testing.assert_close(ours[0], logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], attention, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[2], of_features, atol=1e-6, rtol=1e-3)
    assert ours[3].keys() == gradients.keys() == {name for name, _ in plain.named_parameters()} - {"embedding.weight"}
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[3][name], gradient, atol=1e-5, rtol=1e-3, msg=name)


def test_steps_are_the_plain_decoders():
    "Three hypotheses a study, which share the places and the keys: one copy a study."
    plain, features = make()
    quick = fast_decoder(plain)
    (memory, state), (their_memory, their_state) = quick.start(features), plain.start(features)
    assert [tuple(m.shape) for m in memory] == [(9, 98, 32), (9, 98, 128)]
    state, their_state = (tuple(s.repeat_interleave(3, 0) for s in o) for o in (state, their_state))
    for _ in range(4):
        tokens = torch.randint(PAD + 1, V, (27,))
        logits, state, attention = quick.step(tokens, state, memory)
        expected, their_state, their_attention = plain.step(tokens, their_state, their_memory)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(attention, their_attention, atol=1e-5, rtol=1e-4)


def test_training_it_trains_the_plain_decoder():
    plain, features = make()
    quick, (tokens, targets) = fast_decoder(plain), batch()
    twin = copy.deepcopy(plain)
    for decoder in (quick, twin):
        optimizer = torch.optim.SGD([p for p in decoder.parameters() if p.requires_grad], 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            masked_loss(decoder(features, tokens), targets).backward()
            optimizer.step()
    for (name, ours), theirs in zip(plain.state_dict().items(), twin.state_dict().values()):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=name)


def test_it_shares_weights_and_mode():
    plain, _ = make()
    quick = fast_decoder(plain.train())
    assert isinstance(quick, AttentionDecoder) and quick.config is plain.config
    assert all(a is b for a, b in zip(plain.parameters(), quick.parameters()))
    quick.eval()
    assert not plain.training and not plain.drop.training
    assert type(copy.deepcopy(quick)) is FastAttentionDecoder


def test_dropout_only_in_training():
    plain, features = make()
    plain.drop.p, quick, tokens = 0.5, fast_decoder(plain), batch()[0]
    assert torch.equal(quick.eval()(features, tokens), quick(features, tokens))
    assert not torch.equal(quick.train()(features, tokens), quick(features, tokens))


def test_where_there_is_no_twin_it_is_the_decoder_itself():
    for cls in (LSTMDecoder, TransformerDecoder):
        model, _ = make(cls)
        assert fast_decoder(model) is model
    quick = fast_decoder(make()[0])
    assert fast_decoder(quick) is quick


@pytest.mark.parametrize("cls", [LSTMDecoder, AttentionDecoder, TransformerDecoder])
@pytest.mark.parametrize("eos", [-1e4, 0.0, 2.0, 4.0])
def test_searches_find_what_the_plain_ones_find(cls, eos):
    model, features = make(cls, eos)
    pairs = [(fast.greedy_search(model, features, 15), search.greedy_search(model, features, 15))]
    pairs += [(fast.beam_search(model, features, k, 15), search.beam_search(model, features, k, 15)) for k in (1, 3, 5)]
    for found, expected in pairs:
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.tokens == theirs.tokens
            assert ours.logp == pytest.approx(theirs.logp, abs=1e-3)
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)
            if cls.pooled: assert ours.attention is None
            else: np.testing.assert_allclose(ours.attention, theirs.attention, atol=1e-4)


def test_a_long_batch_whose_reports_end_one_by_one():
    "Finished studies leave the batch; nobody else's report changes by it."
    for eos in range(3, 12):
        model, features = make(eos=eos)
        features = features.repeat(6, 1, 1) + torch.randn(54, 98, 1024)
        found = fast.beam_search(model, features, max_len=30)
        if len({len(h.tokens) for h in found}) > 4: break
    else: pytest.fail("no model whose reports differ in length")
    for x, ours in zip(features[::7], found[::7]):
        assert ours.tokens == search.beam_search(model, x[None], max_len=30)[0].tokens
