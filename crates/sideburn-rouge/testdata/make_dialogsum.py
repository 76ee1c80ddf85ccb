"""Scores of the first two turns of every dialogue of DialogSum's test set against its three summaries.

Usage: SIDEBURN_TEST_DATA=DIR python make_dialogsum.py, where DIR holds data/dialogsum/official. Made with rouge_score 0.1.2.
Writes numbers alone, since the licence keeps the texts out of this repository, and prints how long the scoring took.
"""

import json
import os
import pathlib
import struct
import time

from rouge_score import rouge_scorer

METRICS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]

lines = (pathlib.Path(os.environ["SIDEBURN_TEST_DATA"]) / "data/dialogsum/official/dialogsum.test.jsonl").read_text().splitlines()
rows = [json.loads(line) for line in lines]
pairs = [([row[f"summary{i}"] for i in (1, 2, 3)], "\n".join(row["dialogue"].split("\n")[:2])) for row in rows]
scorer = rouge_scorer.RougeScorer(METRICS, use_stemmer=True)
start = time.process_time()
scores = [scorer.score_multi(references, prediction) for references, prediction in pairs]
print(f"{len(pairs)} dialogues x 3 references: {time.process_time() - start:.3f} s of one core")
with open(pathlib.Path(__file__).parent / "dialogsum_test.bin", "wb") as out:
    for score in scores:
        for metric in METRICS:
            out.write(struct.pack("<3d", *score[metric]))
