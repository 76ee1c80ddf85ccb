"""CTranslate2's side of the comparison: decoding, one case in one process, and one JSON line of what was measured.

    python ctranslate.py decode --model DIR --samples FILE --rows N --new-tokens N [--num-beams N] [--compute f32|int8] ...

`run.py` runs this beside `sideburn.rs`, which takes the same flags and prints the same fields. The model is converted once, into
a directory beside it; its tokens are called by their numbers, so that no tokenizer is needed.
"""

import argparse
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import ctranslate2
from ctranslate2.converters.transformers import T5Loader

from hugging_face import Laps, in_order, load, read_samples, resident_mib

COMPUTE_TYPES = {"f32": "float32", "int8": "int8"}


def main():
    parser = argparse.ArgumentParser(description="CTranslate2's side of benches/peer/run.py")
    parser.add_argument("command", choices=["decode", "convert"])
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--compute", choices=list(COMPUTE_TYPES), default="f32")
    parser.add_argument("--samples", type=Path, help="token ids; a repetition goes through the file once")
    parser.add_argument("--rows", type=int, help="rows of a batch")
    parser.add_argument("--new-tokens", type=int, help="every row writes this many; none ends before")
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=0, help="repetitions that are not counted")
    parser.add_argument("--reps", type=int, default=1, help="repetitions that are counted")
    args = parser.parse_args()
    if args.command == "decode":
        print(json.dumps(decode(args)))
    else:
        convert(args)


def converted(args):
    return args.model.parent / f"{args.model.name}-ctranslate2-{args.compute}"


def convert(args):
    model = load(args.model)
    token = str
    tokenizer = types.SimpleNamespace(
        get_vocab=lambda: {token(index): index for index in range(model.config.vocab_size)},
        pad_token=token(0), eos_token=token(1), unk_token=token(2), convert_ids_to_tokens=token,
    )  # fmt: skip
    spec = T5Loader()(model, tokenizer)
    spec.validate()
    spec.optimize(quantization=COMPUTE_TYPES[args.compute])
    converted(args).mkdir()
    spec.save(str(converted(args)))


def decode(args):
    if not converted(args).exists():
        # In a process of its own, so that what converting takes is not measured.
        flags = ["--model", args.model, "--compute", args.compute]
        subprocess.run([sys.executable, __file__, "convert", *flags], check=True)
    samples = read_samples(args.samples)
    batches = [[list(map(str, row["source"])) for row in batch] for batch in in_order(samples, args.rows)]
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
    options = {"device": "cpu", "inter_threads": 1, "intra_threads": threads, "compute_type": COMPUTE_TYPES[args.compute]}
    translator = ctranslate2.Translator(str(converted(args)), **options)
    lengths = {"max_decoding_length": args.new_tokens, "min_decoding_length": args.new_tokens, "max_input_length": 0}
    laps, ids = Laps(), []
    for _ in range(args.warmup + args.reps):
        written = [translator.translate_batch(batch, beam_size=args.num_beams, **lengths) for batch in batches]
        ids = [list(map(int, row.hypotheses[0])) for rows in written for row in rows]
        laps.lap()
    assert all(len(row) == args.new_tokens for row in ids), "a row ended early"
    tokens = len(samples) * args.new_tokens
    record = laps.record(args.warmup) | {"peak_mib": resident_mib("VmHWM")}
    record["versions"] = {"CTranslate2": ctranslate2.__version__}
    return record | {"batches": len(batches), "tokens": tokens, "computed_tokens": tokens, "ids": ids}


if __name__ == "__main__":
    main()
