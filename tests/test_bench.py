"The benchmark compares like with like: its rivals say what our decoder says, and its rows mean what they say."
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.common import growth, rounds, row
from bench.encoding import GFLOP
from bench.peers import CaseStudy, ShowAttendTell, case_study_search, show_attend_tell_search
from bench.search import report_flop
from bench.training import random_store
from xraycap.attention import AttentionDecoder
from xraycap.encoder import ImageEncoder
from xraycap.fast import beam_search, fused
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
    for x, ours in zip(features, beam_search(decoder, features, max_len=12)):
        assert search(decoder, x, max_len=12) == ours.tokens


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
    features = torch.randn(2, 98, 1024)  # so few that each hypothesis projects its own word
    with FlopCounterMode(display=False) as counter: beam_search(decoder, features, max_len=5)
    beside = 98 * 2 * 128 * (1 + 4 * 3)
    assert report_flop(decoder, length=5) == pytest.approx(counter.get_total_flops() / 2 + beside, rel=0.01)


def test_arithmetic_of_the_network(monkeypatch):
    "PyTorch's own count of one image, where it does the convolutions itself."
    def absent(*_): raise AttributeError
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", absent)  # never oneDNN's own
    net = fused(ImageEncoder(None).eval())
    image = torch.zeros(1, 224, 224, dtype=torch.uint8)
    with torch.inference_mode():
        net(image)  # what depends on the size alone is computed once
        with FlopCounterMode(display=False) as counter: net(image)
    assert counter.get_total_flops() / 1e9 == pytest.approx(GFLOP, rel=0.002)


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
