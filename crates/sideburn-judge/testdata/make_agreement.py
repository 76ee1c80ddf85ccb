"""Makes agreement.json: scores, and how far they agree by scikit-learn and scipy.

    python make_agreement.py    # numpy 2.4.6, scikit-learn 1.9.1, scipy 1.17.1
"""

import json
import math
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

warnings.simplefilter("ignore")
LABELS = [1, 2, 3, 4, 5]
random = np.random.default_rng(7)


def kappa(first, second, weights):
    if any(score != int(score) for score in [*first, *second]):
        return None
    return number(cohen_kappa_score([int(s) for s in first], [int(s) for s in second], labels=LABELS, weights=weights))


def number(value):
    return None if math.isnan(value) else float(value)


def row(first, second):
    return {
        "first": [float(score) for score in first],
        "second": [float(score) for score in second],
        "kappa": kappa(first, second, "quadratic"),
        "kappa_linear": kappa(first, second, "linear"),
        "spearman": number(spearmanr(first, second).statistic),
    }


def noisy(scores, width):
    return np.clip(scores + random.integers(-width, width + 1, len(scores)), 1, 5)


scores = random.integers(1, 6, 60)
rows = [row(scores, noisy(scores, width)) for width in (0, 1, 2, 4)]
rows += [row(random.integers(1, 6, n), random.integers(1, 6, n)) for n in (2, 3, 10, 200)]
rows += [
    row([4, 4, 5, 4, 5, 5], [5, 5, 5, 4, 5, 4]),
    row([1, 3, 5, 3, 1], [5, 3, 1, 3, 5]),
    row([3, 3, 3, 3], [3, 3, 3, 3]),
    row([3, 3, 3, 3], [1, 3, 5, 4]),
    row([3, 3, 3], [4, 4, 4]),
    row(np.round(random.uniform(1, 5, 40) * 3) / 3, random.integers(1, 6, 40)),
]
Path(__file__).with_name("agreement.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
