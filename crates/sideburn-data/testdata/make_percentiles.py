"""Writes percentiles.json: what numpy.percentile gives, as texts: parsers of JSON round the last bit as they like.

    pip install numpy==2.4.6
    python make_percentiles.py
"""
import json
import random
from pathlib import Path

import numpy

random.seed(7)
rows = [[15, 20, 35, 40, 50], [3], [1, 2], [7, 7, 7], [random.randint(1, 700) for _ in range(57)], [random.randint(1, 90) for _ in range(100)]]
percents = [0, 10, 25, 50, 85, 90, 95, 99, 100]
golden = [{"lengths": row, "percentiles": {str(p): repr(float(numpy.percentile(row, p))) for p in percents}} for row in rows]
(Path(__file__).parent / "percentiles.json").write_text(json.dumps(golden) + "\n")
