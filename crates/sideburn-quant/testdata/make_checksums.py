"""Checksums of what bitsandbytes 0.50.2 makes of ten million numbers on the CPU, in matrices of odd shapes.

    pip install torch==2.15.0 bitsandbytes==0.50.2
    OMP_NUM_THREADS=1 python make_checksums.py checksums.json

The numbers are not stored: `values` below and in ../tests/quant/ten_million.rs make the same ones.
"""
import json
import sys

import bitsandbytes.functional as F
import numpy as np
import torch

torch.set_num_threads(1)
SHAPES = [(1, 1), (3, 7), (1, 65), (127, 513), (801, 601), (333, 4097), (1021, 2039), (2999, 2003)]


def bits(index, salt):
    """A well mixed word of 32 bits for each index."""
    x = index * np.uint32(0x9E3779B9) + np.uint32(salt)
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        x = (x ^ (x >> np.uint32(15))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def values(count):
    """Products of two uniform numbers, in plus or minus a half; some thousandth is sixteen times as large."""
    index = np.arange(count, dtype=np.uint32)
    first, second, third = (bits(index, salt) for salt in (1, 2, 3))
    uniform = lambda x: (x >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    product = (uniform(first) - np.float32(0.5)) * uniform(second)
    return np.where(third % 1000 == 0, product * np.float32(16), product)


def checksum(words):
    """The sum of words, each times an odd number that depends on its place."""
    words = words.astype(np.uint64)
    places = np.arange(len(words), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) * np.uint64(2) + np.uint64(1)
    return f"{int((words * places).sum(dtype=np.uint64)):016x}"


def of(tensor):
    array = tensor.detach().contiguous().view(-1).numpy()
    return checksum(array.view(np.uint32) if array.dtype == np.float32 else array.view(np.uint8))


found = {}
for shape in SHAPES:
    weight = torch.from_numpy(values(shape[0] * shape[1])).reshape(shape)
    name = f"{shape[0]}x{shape[1]}"
    for quant_type in ("nf4", "fp4"):
        for block in (64, 128, 4096):
            codes, state = F.quantize_4bit(weight, blocksize=block, quant_type=quant_type)
            found[f"{name}.{quant_type}.{block}"] = {"codes": of(codes), "absmax": of(state.absmax)}
            _, state = F.quantize_4bit(weight, blocksize=block, quant_type=quant_type, compress_statistics=True)
            found[f"{name}.{quant_type}.{block}.dq"] = {
                "absmax": of(state.absmax), "nested_absmax": of(state.state2.absmax), "offset": of(state.offset.reshape(1)),
            }  # fmt: skip
    codes, absmax, _ = F.int8_vectorwise_quant(weight.half())
    found[f"{name}.int8"] = {"codes": of(codes), "absmax": of(absmax)}
json.dump(found, open(sys.argv[1], "w"), indent=1)
