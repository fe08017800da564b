"Growth: each cost against its size, with the order it shows."
import torch

from bench.common import growth, rounds
from bench.search import random_decoder, random_features
from bench.training import our_loss
from xraycap.reports import load_reports
from xraycap.search import beam_search
from xraycap.text import PAD, clean_chen


def measure(limit):
    decoder, x, findings = random_decoder(800), random_features(64), load_reports().findings
    tokens = torch.randint(PAD + 1, 800, (64, 41))

    def train(batches):
        for _ in range(batches): our_loss(decoder, x, tokens[:, :-1], tokens[:, 1:]).backward()

    def grow(name, size, sizes, f):
        seconds = rounds({n: lambda n=n: f(n) for n in sizes}, 3, warm=False)
        return growth(name, "s", size, seconds)

    beam_search(decoder, x[:2])
    return [grow("beam search, k=3, 60 words", "batch", (1, 2, 4, 8, 16, 32, 64), lambda n: beam_search(decoder, x[:n])),
            grow("beam search, batch 16, 60 words", "beam", (1, 2, 3, 5, 8), lambda n: beam_search(decoder, x[:16], k=n)),
            grow("beam search, k=3, batch 16", "words", (8, 15, 30, 60, 120), lambda n: beam_search(decoder, x[:16], max_len=n)),
            grow("training, batches of 64, 40 words", "studies", (64, 128, 256, 512), lambda n: train(n // 64)),
            grow("cleaning", "reports", (250, 500, 1000, 2000, 3900), lambda n: findings[:n].map(clean_chen))]
