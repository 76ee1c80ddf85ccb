"""PyTorch's side of `bf16_linear.rs`: for each line `rows in out` the seconds that a product of two matrices in bf16 takes."""

import os
import sys
import time

import torch

torch.set_num_threads(int(os.environ.get("RAYON_NUM_THREADS") or os.cpu_count()))
operands = {}
with torch.inference_mode():
    for line in sys.stdin:
        n, width, out = map(int, line.split())
        if (n, width, out) not in operands:
            x, weight = torch.randn(n, width) * 0.1, torch.randn(out, width) * 0.1
            operands[n, width, out] = x.bfloat16(), weight.bfloat16()
            torch.nn.functional.linear(*operands[n, width, out])
        x, weight = operands[n, width, out]
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        print(time.perf_counter() - start, flush=True)
