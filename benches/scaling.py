"""The cost model of a run over several ranks, as the tables of docs/scaling.md: a simulation, not a measurement.

    python benches/scaling.py

What a micro-batch takes is measured on two cores where docs/benchmarks.md has it, and else computed (4 operations for each weight and
token at 146 GFLOP/s). An all-reduce of b bytes over n ranks takes 2 (n - 1) / n * b / bandwidth + 2 ceil(log2 n) * latency
(Rabenseifner's algorithm), the two small sums of a step 2 ceil(log2 n) * latency each, and the way of the gradient through main memory
6 b / 10 GB/s. A step takes as long as its slowest rank: micro-batches are drawn from the dialogues of the embedded sample, eight each,
and take as long as they have words. The standard library is all that it needs.
"""

import csv
import math
import pathlib
import random

# name, trained elements, seconds of a micro-batch, where these are from
MODELS = [
    ("FLAN-T5-small, LoRA r 32 on q, v", 1_376_256, 2.18, "measured, 8 x 256 + 64"),
    ("FLAN-T5-small, all weights", 76_961_152, 3.04, "measured, 8 x 256 + 64"),
    ("FLAN-T5-base, LoRA r 32 on q, v", 3_538_944, 7.40, "measured, 8 x 256 + 64"),
    ("FLAN-T5-large, LoRA r 32 on q, v", 9_437_184, 4 * 783e6 * 8 * 320 / 146e9, "computed, 8 x 256 + 64"),
    ("FLAN-T5-XL, LoRA r 32 on q, v", 18_874_368, 4 * 2.85e9 * 8 * 320 / 146e9, "computed, 8 x 256 + 64"),
    ("FLAN-T5-XXL, LoRA r 32 on q, v", 37_748_736, 4 * 11.1e9 * 1 * 305 / 146e9, "computed, 1 x 255 + 50"),
    ("Falcon-7B in NF4, LoRA r 16 on all layers", 32_636_928, 50.6 / 2, "measured (processor time), 1 x 128"),
]
# name, bytes a second, seconds
NETWORKS = [("1 Gbit/s", 0.117e9, 50e-6), ("10 Gbit/s", 1.17e9, 20e-6), ("100 Gbit/s", 11.7e9, 2e-6)]
RANKS = [1, 2, 8, 64, 1024]


def all_reduce(size, ranks, bandwidth, latency):
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) / ranks * size / bandwidth + 2 * math.ceil(math.log2(ranks)) * latency


def exchange(size, ranks, bandwidth, latency):
    """Everything that a step does for other ranks."""
    if ranks == 1:
        return 0.0
    small = 2 * 2 * math.ceil(math.log2(ranks)) * latency
    return all_reduce(size, ranks, bandwidth, latency) + small + 6 * size / 10e9


def slowest(words, ranks, micro_batches, rng):
    """The slowest rank of a step, where a rank takes one on average."""
    if ranks == 1:
        return 1.0
    steps = 100 + 4000 // ranks
    mean = 8 * sum(words) / len(words) * micro_batches
    total = 0.0
    for _ in range(steps):
        total += max(sum(rng.choices(words, k=8 * micro_batches)) for _ in range(ranks)) / mean
    return total / steps


def seconds(value):
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"


def main():
    sample = pathlib.Path(__file__).parent.parent / "assets/dialogsum-sample/train.csv"
    with sample.open(newline="", encoding="utf-8") as file:
        words = [len(row["dialogue"].split()) for row in csv.DictReader(file)]
    rng = random.Random(42)

    print("| what is trained | bytes | a micro-batch | " + " | ".join(f"{name}, 2 / 8 / 1,024 ranks" for name, _, _ in NETWORKS) + " |")
    print("|---|---|---|" + "---|" * len(NETWORKS))
    for name, elements, step, source in MODELS:
        size = 4 * elements
        cells = [" / ".join(seconds(all_reduce(size, n, w, a)) for n in (2, 8, 1024)) for _, w, a in NETWORKS]
        print(f"| {name} | {size / 1e6:.1f} MB | {step:.1f} s ({source}) | " + " | ".join(cells) + " |")

    for micro_batches in (1, 8):
        slow = [slowest(words, n, micro_batches, rng) for n in RANKS]
        print(f"\n{micro_batches} a rank; the slowest of the ranks takes " + ", ".join(f"{s:.2f}" for s in slow) + " times the mean\n")
        print("| what is trained | network | " + " | ".join(f"{n:,}" for n in RANKS) + " |")
        print("|---|---|" + "---|" * len(RANKS))
        for name, elements, step, _ in [MODELS[at] for at in (0, 1, 2, 6)]:
            for network, bandwidth, latency in NETWORKS[:2]:
                work = micro_batches * step
                cells = []
                for n, s in zip(RANKS, slow):
                    taken = work * s + exchange(4 * elements, n, bandwidth, latency)
                    cells.append(f"{100 * work / taken:.0f} %")
                print(f"| {name} | {network} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
