"""Turns the records of `run.py` into a section of `docs/benchmarks.md`."""

import os
import statistics
import sys
import textwrap
from dataclasses import dataclass

from cases import ENGINE, PRACTICE, SAME_WORK, SIZE, START_UP

BEGIN = "<!-- benches/peer/run.py writes from here -->"
END = "<!-- to here -->"
WIDTH = 118
# With fewer repetitions undisturbed, all are taken.
ENOUGH = 3


@dataclass
class Measured:
    """What all processes of a run measured together."""

    times: list
    others: float
    contended: bool
    peak_mib: float
    records: list

    @property
    def title(self):
        """As it was when this was measured: how long an epoch is may have been chosen since."""
        return self.records[0]["title"]

    @property
    def median(self):
        return statistics.median(self.times)

    def cell(self):
        spread = f" ({digits(min(self.times))} to {digits(max(self.times))})" if len(self.times) > 1 else ""
        return f"{digits(self.median)} s{spread}"

    def load(self):
        return f"{self.others:.2f}{', contended' if self.contended else ''}"


def allowed_others(threads):
    """How many cores others may keep busy without taking any from the threads; a little is never to be avoided."""
    return max(0, os.cpu_count() - threads) + 0.2


def measured(case, run, records):
    """None if the run was not made."""
    mine = [record for record in records if is_of(record, case, run)]
    if not mine:
        return None
    limit = allowed_others(mine[0]["threads"])
    laps = [lap for record in mine for lap in zip(times(case, record), record["other_cores"], strict=True)]
    quiet = [lap for lap in laps if lap[1] <= limit]
    kept = quiet if len(quiet) == len(laps) or len(quiet) >= ENOUGH else laps
    return Measured(
        times=[seconds for seconds, _ in kept],
        others=statistics.median(others for _, others in kept),
        contended=kept is not quiet,
        peak_mib=statistics.median(record["peak_mib"] for record in mine),
        records=mine,
    )


def is_of(record, case, run):
    return (record["case"], record["side"], record["label"]) == (case.name, run.side, run.label)


def times(case, record):
    """Seconds of a whole epoch, of a start up to the end of the first step, or else of each step."""
    if case.table == START_UP:
        return [record["first_step_at"] - record["started_at"]]
    batches = 1 if case.table == PRACTICE else record["batches"]
    return [seconds / batches for seconds in record["seconds"]]


def summary(case, run, record):
    """A line for whoever waits."""
    seconds = ", ".join(digits(time) for time in times(case, record))
    others = ", ".join(f"{cores:.2f}" for cores in record["other_cores"])
    loss = f"; first loss {record['losses'][0]:.4f}" if record.get("losses") else ""
    label = f" {run.label}" if run.label else ""
    peak = f"peak {record['peak_mib']:.0f} MiB"
    return f"{case.name}, {run.side}{label}: {seconds} s; {peak}; others {others} cores{loss}"


# ------------------------------------------------------------------------------------------------------------- document


def replace_section(document, section):
    """The document with `section` between the two marks."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"the document has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{section}\n{end}{after}"


def section(cases, records, toolchain):
    parts = [conditions(records, toolchain)]
    tables = ((SAME_WORK, same_work), (ENGINE, engine), (PRACTICE, practice), (START_UP, start_up), (SIZE, size))
    for table, rows in tables:
        done = [case for case in cases if case.table == table and measured(case, case.ours, records)]
        if done:
            parts.append(f"### {table}\n\n{rows(done, records)}")
    return "\n\n".join(parts) + "\n"


def conditions(records, toolchain):
    """Machine, versions and the command; several, if the results were not all taken on one."""
    first = records[0]
    machines = {f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB" for m in (r["machine"] for r in records)}
    commits = {record["commit"] for record in records}
    versions = toolchain | {"Python": first["python"]}
    for record in records:
        versions |= record["versions"]
    versions.pop("sideburn", None)
    rounds = 1 + max(record["round"] for record in records)
    reps, warmup = (max(record[name] for record in records) for name in ("reps", "warmup"))
    threads = ", ".join(sorted({str(record["threads"]) for record in records}))
    notes = [
        f"machine: {'; '.join(sorted(machines))}; threads of each side: {threads}; f32",
        "; ".join([f"Sideburn at {', '.join(sorted(commits))}", ", ".join(map(" ".join, versions.items()))]),
        f"token ids of dialogues: the tokenizer in `{first['tokenizer']}`",
        "a time is the median of all repetitions, with the least and the largest; \"others\" is how many cores other "
        "processes kept busy meanwhile, ours first",
        "memory is the peak of what a process held resident (`VmHWM`), libraries, weights and loading included",
    ]
    if libraries := [record["libraries_mib"] for record in records if "libraries_mib" in record]:
        notes[-1] += f"; of theirs, {statistics.median(libraries):,.0f} MiB are the imported libraries"
    command = (
        f"`python benches/peer/run.py --python PYTHON --threads {threads} --rounds {rounds} --reps {reps} "
        f"--warmup {warmup}`; how it is fair stands at its head."
    )
    items = [textwrap.fill(note, WIDTH, initial_indent="- ", subsequent_indent="  ") for note in notes]
    return "\n".join([command, "", *items])


def same_work(cases, records):
    times_table = [comparison(case, records) for case in cases]
    memory_rows = [row for case in cases if case.memory_bar for row in memory(case, records)]
    text = "Seconds of a step, or of the whole for decoding.\n\n" + markdown(HEAD, times_table)
    if memory_rows:
        head = ["peak memory", "Sideburn", "Hugging Face", "ours / theirs", "bar"]
        text += "\n\n" + markdown(head, memory_rows)
    return text


HEAD = ["", "Sideburn", "Hugging Face", "theirs / ours", "bar", "others"]


def comparison(case, records):
    ours = measured(case, case.ours, records)
    theirs = measured(case, case.theirs[0], records)
    if theirs is None:
        return [ours.title, ours.cell(), "not run", "", "", ours.load()]
    bar = case.theirs[0].bar
    ratio = theirs.median / ours.median
    return [ours.title, ours.cell(), theirs.cell(), *least(ratio, bar), f"{ours.load()}; {theirs.load()}"]


def engine(cases, records):
    head = ["", "Sideburn", "CTranslate2", *HEAD[3:]]
    about = "Seconds of the whole. Integers are those of 8 bits: weights, and each token's activations."
    return about + "\n\n" + markdown(head, [comparison(case, records) for case in cases])


def memory(case, records):
    ours, theirs = measured(case, case.ours, records), measured(case, case.theirs[0], records)
    if theirs is None:
        return
    ratio = ours.peak_mib / theirs.peak_mib
    met = "met" if ratio <= case.memory_bar else "not met"
    peaks = [f"{side.peak_mib:,.0f} MiB" for side in (ours, theirs)]
    yield [ours.title, *peaks, f"{ratio:.2f}", f"<= {case.memory_bar}: {met}"]


def practice(cases, records):
    rows = []
    for case in cases:
        ours = measured(case, case.ours, records)
        title = ours.title
        for run in (case.ours, *case.theirs):
            side = measured(case, run, records)
            if side is None:
                continue
            record = side.records[0]
            ratio = least(side.median / ours.median, run.bar) if not run.ours else ["", ""]
            steps, tokens = f"{record['batches']:,}", f"{record['computed_tokens']:,} of {record['tokens']:,}"
            rows.append([f"{run.side}: {run.label}", side.cell(), steps, tokens, *ratio, side.load()])
    head = [title, "time", "steps", "tokens computed, of real ones", "theirs / ours", "bar", "others"]
    return markdown(head, rows)


def start_up(cases, records):
    rows = []
    for case in cases:
        rows.append(comparison(case, records))
        sides = [measured(case, run, records) for run in (case.ours, case.theirs[0])]
        if all(sides):
            ready = [statistics.median(r["ready_at"] - r["started_at"] for r in side.records) for side in sides]
            cells = [f"{digits(seconds)} s" for seconds in ready]
            rows.append(["of that, until the first step begins", *cells, f"{ready[1] / ready[0]:.2f}", "", ""])
    about = "From the start of the process to the end of the first step, with the weights on disk, in the file cache."
    return about + "\n\n" + markdown(HEAD, rows)


def size(cases, records):
    rows = []
    for case in cases:
        ours = measured(case, case.ours, records)
        tokens = ours.records[0]["tokens"]
        resting = statistics.median(record["resting_mib"] for record in ours.records)
        above = f"{ours.peak_mib - resting:,.0f} MiB"
        speed = f"{tokens / ours.median:,.0f}"
        rows.append([ours.title, ours.cell(), speed, f"{ours.peak_mib:,.0f} MiB", above, ours.load()])
    head = ["rows x source + target", "step", "tokens a second", "peak memory", "above the loaded model", "others"]
    return "Sideburn alone: a LoRA step of FLAN-T5-small, dropout 0.1, every row full.\n\n" + markdown(head, rows)


def least(ratio, bar):
    met = "met" if bar and ratio >= bar else "not met"
    return [f"{ratio:.2f}", f">= {bar:g}: {met}" if bar else ""]


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def digits(seconds):
    """Three digits that mean something."""
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.2f}"
