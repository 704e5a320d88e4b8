"""Golden choices of tokens by their relevance to a question, in NumPy and double precision.

The determinantal point process is maximized by its definition: every step computes the determinants
of the kernel with each further row, so that nothing of the fast algorithm is repeated here.

    python question.py ../data/goldens/question.json
"""

import json
import sys
from pathlib import Path

import numpy as np

TOKENS, WORDS, WIDTH = 40, 5, 12


def directions(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def weights(features, question):
    relevance = -(directions(features) @ directions(question).T).mean(1)
    relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    return 0.5 + 0.5 * relevance


def choose(kernel, count, first):
    chosen = list(first)
    while len(chosen) < count:
        gains = {}
        for row in sorted(set(range(len(kernel))) - set(chosen)):
            rows = chosen + [row]
            sign, gain = np.linalg.slogdet(kernel[np.ix_(rows, rows)])
            assert sign > 0
            gains[row] = round(gain, 9)
        best = max(gains, key=gains.get)
        second = sorted(gains.values())[-2]
        # Rounding must not decide. Of equal rows the first is taken: without a question, all are
        # equal at first.
        assert gains[best] == second or gains[best] > second + 1e-5, chosen
        chosen.append(best)
    return sorted(int(row) for row in chosen)


def main():
    random = np.random.default_rng(5)
    # A few groups of similar rows, as of an image with flat areas.
    groups = random.normal(size=(6, WIDTH))
    features = groups[random.integers(6, size=TOKENS)] + 0.4 * random.normal(size=(TOKENS, WIDTH))
    features = features.astype(np.float32) * random.uniform(0.5, 20, (TOKENS, 1)).astype(np.float32)
    question = (groups[:WORDS] + random.normal(size=(WORDS, WIDTH))).astype(np.float32)
    x = directions(features.astype(np.float64))
    relevance = weights(features.astype(np.float64), question.astype(np.float64))
    choices = []
    for asked in (True, False):
        weight = relevance if asked else np.ones(TOKENS)
        kernel = weight[:, None] * (x @ x.T) * weight
        for count, first in [(1, []), (4, []), (8, []), (11, []), (8, [3, 17, 22])]:
            kept = choose(kernel, count, first)
            choices.append({"asked": asked, "count": count, "first": first, "kept": kept})
    golden = {
        "features": features.astype(float).round(6).tolist(),
        "question": question.astype(float).round(6).tolist(),
        "weights": relevance.round(7).tolist(),
        "choices": choices,
    }
    Path(sys.argv[1]).write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
