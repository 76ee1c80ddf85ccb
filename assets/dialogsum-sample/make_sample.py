#!/usr/bin/env python3
"""Draws the DialogSum sample beside this script from a copy of the whole data set.

    python3 make_sample.py DIRECTORY [--out DIRECTORY] [--pretraining-text FILE]

DIRECTORY holds the three CSV files of the hub data set `knkarthick/dialogsum`: `train.csv`, `validation.csv` and
`test.csv`, or the same names with `dialogsum_` in front. Only the standard library is used, and the same input
always gives the same bytes:

* A dialogue is eligible if it has at most 1,000 characters (about 290 T5 tokens; four fifths of the data
  set), so that a CPU can train on the sample in minutes.
* Eligible dialogues are ordered by SHA-256 of "sideburn sample 1" and their id, and the first 1,200 / 60 / 120 of
  train / validation / test are kept, written in the data set's order. A hash, unlike a seeded generator, gives the
  same draw in every version of every language.
* A dialogue is passed over if its text (case and blanks aside) occurs in a split drawn before it. Test is drawn
  first, then validation, then train.

With `--pretraining-text` it also writes the text of every training dialogue that the sample does not hold and whose
text occurs in no part of the sample nor in the whole validation or test set, one {"dialogue", "summary"} object a line.
No summary of the sample, of the validation or of the test split is in it. It is text to pretrain a small base model on.
"""

import argparse
import csv
import hashlib
import json
import pathlib
import sys

MAX_CHARACTERS = 1000
COUNTS = {"train": 1200, "validation": 60, "test": 120}
COLUMNS = ["id", "dialogue", "summary", "topic"]


def read_split(directory, split):
    """The rows of one split, grouped by dialogue: {dialogue id: [row, ...]}."""
    names = [f"{split}.csv", f"dialogsum_{split}.csv"]
    path = next((directory / name for name in names if (directory / name).is_file()), None)
    if path is None:
        sys.exit(f"{directory} holds neither {' nor '.join(names)}")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or list(rows[0]) != COLUMNS:
        sys.exit(f"{path}: expected the columns {', '.join(COLUMNS)}")
    groups = {}
    for row in rows:
        # A test dialogue stands three times, with one of its three references each: test_7_1, test_7_2, test_7_3.
        key = row["id"].rsplit("_", 1)[0] if split == "test" else row["id"]
        groups.setdefault(key, []).append(row)
    return groups


def plain(text):
    """The text as compared between splits: case and blanks do not make two dialogues different."""
    return "".join(text.casefold().split())


def dialogue_of(rows):
    return rows[0]["dialogue"]


def draw(groups, count, taken):
    """`count` dialogues whose text is not in `taken`, in the order of `groups`; their text is added to `taken`."""
    by_hash = sorted(groups, key=lambda name: hashlib.sha256(f"sideburn sample 1 {name}".encode()).digest())
    drawn = set()
    for name in by_hash:
        text = plain(dialogue_of(groups[name]))
        if len(dialogue_of(groups[name])) <= MAX_CHARACTERS and text not in taken:
            drawn.add(name)
            taken.add(text)
            if len(drawn) == count:
                return {name: rows for name, rows in groups.items() if name in drawn}
    sys.exit(f"only {len(drawn)} of {count} dialogues of at most {MAX_CHARACTERS} characters found")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("directory", type=pathlib.Path, help="holds the CSV files of the whole data set")
    arguments.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent)
    arguments.add_argument("--pretraining-text", type=pathlib.Path, metavar="FILE")
    options = arguments.parse_args()

    whole = {split: read_split(options.directory, split) for split in COUNTS}
    taken, sample = set(), {}
    for split in ["test", "validation", "train"]:
        sample[split] = draw(whole[split], COUNTS[split], taken)
        with (options.out / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(row for rows in sample[split].values() for row in rows)
        print(f"{split}.csv: {len(sample[split])} dialogues, {sum(map(len, sample[split].values()))} rows")

    if options.pretraining_text:
        held_out = taken | {plain(dialogue_of(rows)) for split in ["validation", "test"] for rows in whole[split].values()}
        written = 0
        with options.pretraining_text.open("w", encoding="utf-8", newline="\n") as file:
            for name, rows in whole["train"].items():
                if name not in sample["train"] and plain(dialogue_of(rows)) not in held_out:
                    file.write(json.dumps({"dialogue": dialogue_of(rows), "summary": rows[0]["summary"]}, ensure_ascii=False) + "\n")
                    written += 1
        print(f"{options.pretraining_text}: {written} of {len(whole['train'])} training dialogues, with their summaries")


if __name__ == "__main__":
    main()
