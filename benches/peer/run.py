#!/usr/bin/env python3
"""Measures Sideburn beside Hugging Face transformers + peft, and beside CTranslate2, on one machine and in one go.

    python benches/peer/run.py --python PYTHON_WITH_TORCH_TRANSFORMERS_PEFT

It builds our side, checks that both do the same work, measures, and writes the figures between two marks in
`docs/benchmarks.md`. Only the standard library is used here (Python 3.10); PYTHON runs `hugging_face.py`, and for the cases
`engine-*` `ctranslate.py`, which needs ctranslate2. Linux only, for `/proc`. Set `SIDEBURN_TEST_DATA`, or give `--dataset` and `--tokenizer`, for the whole of DialogSum.

How it is fair:

* Both sides load the same files: FLAN-T5's configurations with seeded random weights, and token ids, made once. All in
  f32, with the same number of threads.
* Before anything is timed, both run the same cases without dropout: the losses of the first steps must agree within
  1e-3, and the tokens that are written must be equal.
* Every run is a process of its own, so that its peak of resident memory (`VmHWM`) is its own. Sides alternate, and
  which one is first alternates as well.
* A step is what a training loop does: forward, backward, clipping of the global norm, AdamW, and reading the loss. Of
  each run some repetitions are left out as warm-up.
* In the table "the same work" both take the same batches. Theirs are padded to the longest row. Ours are packed, since
  that is what the library does with a batch. In "recommended practice" each side chooses its batches. The notebooks
  that pad every row to 512 + 128 count that padding in the loss and leave out the mask; here theirs does neither.
* Each repetition also says how many cores other processes kept busy. Where they took what the threads needed, the
  repetition is contended: it is left out if at least three others remain, and the table says so if not. PyTorch
  suffers more from that than we do, because its threads wait for each other at every operation, and CTranslate2 more still:
  measure on a quiet machine, or with `--threads 1`.

All of it takes more than an hour on two cores; `--list` and `--cases` choose. `--results FILE` collects one JSON object
for each run. With `--keep` runs that are in it are not run again, so that a measurement can be cut short and taken up,
and `--write-only` only writes the document. The comparison with Burn's own `apply_lora` is
`cargo bench --bench step_memory`.
"""

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report
from cases import Dialogues, Full, all_cases, checks

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
TOLERANCE = 1e-3


def main():
    args = parse()
    datasets = find_datasets(args)
    cases = all_cases(list(datasets), args.samples or (1000 if "dialogsum" in datasets else 200))
    if args.list:
        print("\n".join(f"{case.name:24}{case.table}: {case.title}" for case in cases))
        return
    selected = chosen(cases, args.cases)
    if not args.write_only:
        with tempfile.TemporaryDirectory(prefix="sideburn-peer-") as scratch:
            bench = Workbench(args, datasets, args.scratch or Path(scratch))
            if not args.skip_check:
                check(bench, list(datasets)[-1])
            if not args.check:
                measure(bench, selected, args)
    if not args.check:
        write(cases, args)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, results = parser.add_argument, ROOT / "target" / "peer" / "results.jsonl"
    add("--python", default=sys.executable, help="a Python with torch, transformers and peft")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side [all cores]")
    add("--rounds", type=int, default=3, help="processes of each run [3]")
    add("--epoch-rounds", type=int, default=1, help="processes of each run of the epoch [1]")
    add("--reps", type=int, default=3, help="repetitions in each process [3]")
    add("--warmup", type=int, default=2, help="repetitions before those that count [2]")
    add("--cases", help="which, with commas between them; a star at the end stands for anything [all]")
    add("--list", action="store_true", help="list the cases")
    add("--samples", type=int, help="of the epoch [1000 of the whole data, 200 of the embedded sample]")
    add("--dataset", type=Path, help="DialogSum [below SIDEBURN_TEST_DATA; else the embedded sample alone]")
    add("--tokenizer", type=Path, help="FLAN-T5's [below SIDEBURN_TEST_DATA; else that of assets/t5-mini]")
    add("--check", action="store_true", help="only check that both sides do the same work")
    add("--skip-check", action="store_true", help="measure without that check")
    add("--patience", type=float, default=60, help="seconds to wait for a quiet machine before each run [60]")
    add("--results", type=Path, default=results, help="where records are collected [target/peer/results.jsonl]")
    add("--keep", action="store_true", help="do not run again what is in the results")
    add("--write-only", action="store_true", help="write the document from the results")
    add("--no-write", action="store_true", help="print the section, and leave the document as it is")
    add("--scratch", type=Path, help="directory for weights and token ids, to be used again [a temporary one]")
    return parser.parse_args()


def find_datasets(args):
    """The directories of the data sets at hand, by name."""
    datasets = {"sample": ROOT / "assets" / "dialogsum-sample"}
    whole = args.dataset or test_data("dialogsum/hf-csv")
    return datasets | ({"dialogsum": whole} if whole else {})


def find_tokenizer(args):
    return args.tokenizer or test_data("tokenizer/flan-t5-small-official") or ROOT / "assets" / "t5-mini"


def test_data(directory):
    root = os.environ.get("SIDEBURN_TEST_DATA")
    path = Path(root) / "data" / directory if root else None
    return path if path and path.is_dir() else None


def chosen(cases, names):
    if not names:
        return cases
    patterns = names.split(",")
    known = [case.name for case in cases]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in known):
            sys.exit(f"no case {pattern}; there are: {', '.join(known)}")
    return [case for case in cases if any(matches(case.name, pattern) for pattern in patterns)]


def matches(name, pattern):
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


class Workbench:
    """Makes what the runs need, once, and runs them."""

    def __init__(self, args, datasets, scratch):
        self.python, self.threads, self.patience = args.python, args.threads, args.patience
        self.datasets, self.tokenizer, self.scratch = datasets, find_tokenizer(args), scratch
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.sideburn = build()

    def run(self, run, reps=1, warmup=0):
        """The record that a process prints, with the moment when it was started."""
        program = [self.sideburn] if run.ours else [self.python, HERE / f"{run.program}.py"]
        flags = {"--model": self.weights(run.size, run.dropout), "--samples": self.samples(run.samples)}
        flags |= {"--rows": run.rows, "--reps": reps, "--warmup": warmup}
        arguments = [str(word) for flag in flags.items() for word in flag]
        self.wait_until_quiet()
        started_at = time.time()
        record = json.loads(self.output([*program, run.command, *arguments, *run.options]))
        return record | {"started_at": started_at}

    def output(self, command):
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
        environment = os.environ | threads | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode != 0:
            sys.exit(f"exit status {done.returncode} of: {' '.join(map(str, command))}")
        return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""

    def weights(self, size, dropout):
        """A model directory of FLAN-T5's configuration with this dropout rate, and the weights of that size."""
        published = ROOT / "testdata" / f"flan_t5_{size}" / "config.json"
        base, directory = self.scratch / size, self.scratch / f"{size}-dropout{dropout}"
        if not (base / "config.json").exists():
            say(f"making the weights of FLAN-T5-{size}'s configuration")
            command = [self.python, HERE / "hugging_face.py", "weights", "--config", published, "--out", base]
            self.output(command)
        if not directory.exists():
            directory.mkdir()
            os.link(base / "model.safetensors", directory / "model.safetensors")
            config = json.loads(published.read_text()) | {"dropout_rate": dropout}
            (directory / "config.json").write_text(json.dumps(config))
        return directory

    def samples(self, samples):
        """A file of token ids, one sample a line."""
        match samples:
            case Full(rows, source, target):
                path = self.scratch / f"full-{rows}x{source}+{target}.jsonl"
                if not path.exists():
                    path.write_text("".join(full_rows(rows, source, target)))
            case Dialogues(dataset, count):
                path = self.scratch / f"{dataset}-{self.tokenizer.name}-{count}.jsonl"
                if not path.exists():
                    flags = {"--dataset": self.datasets[dataset], "--tokenizer": self.tokenizer}
                    flags |= {"--count": count, "--out": path}
                    self.output([self.sideburn, "tokens", *(word for flag in flags.items() for word in flag)])
        return path

    def wait_until_quiet(self):
        """Waits until others leave the cores alone that the threads need, but no longer than there is patience."""
        until = time.time() + self.patience
        while time.time() < until and busy_cores(1.0) > report.allowed_others(self.threads):
            pass


def full_rows(rows, source, target):
    draw = random.Random(1)
    for _ in range(rows):
        ids = {
            name: [draw.randrange(2, 32100) for _ in range(length)]
            for name, length in (("source", source), ("target", target))
        }
        yield json.dumps(ids) + "\n"


def build():
    """Our side's program."""
    command = ["cargo", "build", "--release", "--workspace", "--locked", "--benches"]
    say(" ".join(command))
    command.append("--message-format=json-render-diagnostics")
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("our side does not build")
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "peer":
            return message["executable"]
    sys.exit("cargo built no program `peer`")


def busy_cores(seconds):
    """How many cores all processes kept busy in that time."""

    def ticks():
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:8]]
        return sum(fields) - fields[3] - fields[4]

    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def check(bench, dataset):
    """Ends the program unless both sides compute the same."""
    for title, our_run, their_run in checks(dataset):
        ours, theirs = bench.run(our_run), bench.run(their_run)
        if our_run.command == "decode":
            agree, told = ours["ids"] == theirs["ids"], f"{len(ours['ids'])} rows"
        else:
            pairs = list(zip(ours["losses"], theirs["losses"], strict=True))
            agree = all(abs(our_loss - their_loss) <= TOLERANCE for our_loss, their_loss in pairs)
            told = ", ".join(f"{our_loss:.5f} / {their_loss:.5f}" for our_loss, their_loss in pairs)
        say(f"{'agree' if agree else 'DIFFER'}: {title}: {told}")
        if not agree:
            sys.exit("the two sides do not do the same work")


def measure(bench, cases, args):
    """Runs every case in every round, and adds each record to the results at once."""
    args.results.parent.mkdir(parents=True, exist_ok=True)
    if not args.keep:
        args.results.unlink(missing_ok=True)
    have = {identity(record) for record in read_results(args.results)}
    conditions = {"machine": machine(), "threads": args.threads, "commit": git_commit()}
    conditions |= {"python": python_version(bench), "tokenizer": find_tokenizer(args).name}
    for case in cases:
        reps, warmup = case.repetitions(args.reps, args.warmup)
        for round_number in range(case.processes(args.rounds, args.epoch_rounds)):
            runs = [case.ours, *case.theirs]
            for run in runs if round_number % 2 == 0 else reversed(runs):
                named = {"case": case.name, "side": run.side, "label": run.label, "round": round_number}
                if identity(named) in have:
                    continue
                record = bench.run(run, reps, warmup)
                record |= named | {"title": case.title, "reps": reps, "warmup": warmup} | conditions
                record.pop("ids", None)
                with args.results.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                say(report.summary(case, run, record))


def identity(record):
    return record["case"], record["side"], record["label"], record["round"]


def read_results(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(cases, args):
    """Writes down every case that there are results of."""
    records = read_results(args.results)
    if not records:
        sys.exit(f"no results in {args.results}")
    section = report.section(cases, records, toolchain())
    print(section)
    if not args.no_write:
        DOCUMENT.write_text(report.replace_section(DOCUMENT.read_text(), section))
        say(f"wrote {DOCUMENT.relative_to(ROOT)}")


# ------------------------------------------------------------------------------------------------ what it was run with


def machine():
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cpu": cpu.group(1).strip() if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory.group(1)) / 2**20),
    }


def git_commit():
    commit = text_of("git", "rev-parse", "--short", "HEAD")
    return commit + (" with changes" if text_of("git", "status", "--porcelain", "--untracked-files=no") else "")


def toolchain():
    burn = re.search(r'name = "burn"\nversion = "(.*)"', (ROOT / "Cargo.lock").read_text())
    return {"rustc": text_of("rustc", "--version").split()[1], "Burn": burn.group(1)}


def python_version(bench):
    return text_of(bench.python, "--version").split()[1]


def text_of(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
