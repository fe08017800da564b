"The benchmark compares like with like: its rivals say and learn what our decoder does, and its rows mean what they say."
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from bench.common import growth, rounds, row
from bench.encoding import GFLOP
from bench.peers import CaseStudy, Plain, ShowAttendTell, case_study_search, plain_loss, show_attend_tell_search
from bench.search import report_flop
from bench.training import our_loss, random_store
from torch.utils.flop_counter import FlopCounterMode
from xraycap.attention import AttentionDecoder
from xraycap.encoder import CheXNet
from xraycap.fast import _Conv, fused
from xraycap.search import beam_search
from xraycap.text import EOS, PAD, SOS


@pytest.fixture(params=[-1e4, 1.])
def decoder(request):
    "Probabilities far from even; reports that never end, and some that do."
    torch.manual_seed(0)
    model = AttentionDecoder(30, torch.randn(30, 300), hidden=16, attention=8).eval()
    for p in model.parameters(): p.data.mul_(2.5)
    model.output.bias.data[EOS] += request.param
    return model


@pytest.mark.parametrize("search", [case_study_search, show_attend_tell_search])
def test_the_loops_find_the_same_reports(decoder, search):
    features = torch.randn(4, 98, 1024)
    for x, ours in zip(features, beam_search(decoder, features, max_len=12)): assert search(Plain(decoder), x, max_len=12) == ours.tokens


def test_the_same_loss_and_gradients_step_by_step(decoder):
    tokens = torch.randint(3, 30, (5, 8))
    tokens[:, 0], tokens[2, 5:] = SOS, PAD
    decoder.train()
    decoder.drop.p = 0.
    losses, gradients = [], []
    for loss in (our_loss, plain_loss):
        value = loss(decoder, torch.randn(5, 98, 1024, generator=torch.Generator().manual_seed(1)), tokens[:, :-1], tokens[:, 1:])
        value.backward()
        losses.append(value.item())
        gradients.append([p.grad.clone() for p in decoder.parameters() if p.requires_grad])
        decoder.zero_grad()
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for ours, plain in zip(*gradients): torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("published", [CaseStudy, ShowAttendTell])
def test_both_loops_search_the_published_decoders_alike(published):
    torch.manual_seed(0)
    model, features = published(30, size=16).eval(), torch.randn(98, 1024)
    for p in model.parameters(): p.data.mul_(3)
    words = show_attend_tell_search(model, features, max_len=6)
    assert words == case_study_search(model, features, max_len=6)
    assert 0 < len(words) <= 6 and not {PAD, SOS} & set(words)


def test_arithmetic_is_counted():
    "Against PyTorch's own count of the matrix products; beside them, attention's sums and tanh."
    decoder = AttentionDecoder(50).eval()
    decoder.output.bias.data[EOS] = -1e4
    with FlopCounterMode(display=False) as counter: beam_search(decoder, torch.randn(2, 98, 1024), max_len=5)  # so few that each projects its own word
    beside = 98 * 2 * 128 * (1 + 4 * 3)
    assert report_flop(decoder, length=5) == pytest.approx(counter.get_total_flops() / 2 + beside, rel=.01)


def test_arithmetic_of_the_network(monkeypatch):
    "PyTorch's own count of one image, where it does the convolutions itself."
    monkeypatch.setattr(_Conv, "packed", property(lambda conv: None, lambda conv, weight: None), raising=False)  # never oneDNN's own
    net = fused(CheXNet(None).eval())
    image = torch.zeros(1, 224, 224, dtype=torch.uint8)
    with torch.inference_mode():
        net(image)  # what depends on the size alone is computed once
        with FlopCounterMode(display=False) as counter: net(image)
    assert counter.get_total_flops() / 1e9 == pytest.approx(GFLOP, rel=.002)


def test_rows():
    "More is better of a rate, less of a time."
    assert row("", "reports/s", [8., 10., 9.], "", [2., 1.], 4)["ratio"] == 5
    times = row("", "s", [3., 1., 2.], "", 4., 4)
    assert (times["ratio"], times["ours"], times["ours_median"]) == (4, 1, 2)
    assert growth("", "s", "", {n: [n**2, 2 * n**2] for n in (1, 2, 4)})["order"] == pytest.approx(2)
    turns = []
    seconds = rounds({name: lambda name=name: turns.append(name) for name in "ab"}, 2)
    assert "".join(turns) == "ababab" and all(len(s) == 2 for s in seconds.values())


def test_random_store(tmp_path):
    store = random_store(tmp_path, [5, 7, 9])
    assert len(store) == 3 and store[7].shape == (98, 1024) and store[9].dtype == np.float16
