"Growth: each cost against its size, with the order it shows."
import torch

from bench.common import growth, rounds
from bench.search import random_decoder, random_features
from bench.training import loss_of
from xraycap.fast import beam_search, fast_decoder
from xraycap.reports import load_reports
from xraycap.text import PAD, clean_chen

BATCHES, BEAMS, WORDS = (1, 2, 4, 8, 16, 32, 64), (1, 2, 3, 5, 8), (8, 15, 30, 60, 120)


def measure(limit):
    decoder, x, findings = random_decoder(800), random_features(64), load_reports().findings
    quick, tokens = fast_decoder(decoder), torch.randint(PAD + 1, 800, (64, 41))

    def train(batches):
        for _ in range(batches): loss_of(quick, x, tokens[:, :-1], tokens[:, 1:]).backward()

    def grow(name, size, sizes, f):
        seconds = rounds({n: lambda n=n: f(n) for n in sizes}, 3, warm=False)
        return growth(name, "s", size, seconds)

    def search(n, **kwargs): return beam_search(decoder, x[:n], **kwargs)

    search(2)
    return [grow("beam search, k=3, 60 words", "batch", BATCHES, search),
            grow("beam search, batch 16, 60 words", "beam", BEAMS, lambda k: search(16, k=k)),
            grow("beam search, k=3, batch 16", "words", WORDS, lambda n: search(16, max_len=n)),
            grow("training, batches of 64, 40 words", "studies", (64, 128, 256, 512), lambda n: train(n // 64)),
            grow("cleaning", "reports", (250, 500, 1000, 2000, 3900), lambda n: findings[:n].map(clean_chen))]
