"""What is compared: the cases, the flags of each side, and the bars that ratios are held against.

A run is one process. Both sides of a case read the same weights and the same token ids, which `Workbench` in `run.py`
makes from the names here. `bar` is the least ratio theirs / ours of times, `memory_bar` the largest ratio ours / theirs
of peak memory.
"""

from dataclasses import dataclass, replace

SAME_WORK = "The same work"
ENGINE = "Decoding, beside CTranslate2"
PRACTICE = "Each side's recommended practice"
START_UP = "Start-up"
SIZE = "Cost against size"

# How the programs are called that run a case.
SIDES = {"sideburn": "Sideburn", "hugging_face": "Hugging Face", "ctranslate": "CTranslate2"}

# How data sets are called in titles.
CALLED = {"sample": "embedded sample", "dialogsum": "DialogSum"}

# Samples of the real data that a repetition goes through, in batches of 8; steps of the larger model are long.
REAL_SAMPLES = {"small": 64, "base": 32}


@dataclass(frozen=True)
class Full:
    """Random token ids, every row full."""

    rows: int
    source: int
    target: int


@dataclass(frozen=True)
class Dialogues:
    """The first dialogues of a data set's training split."""

    dataset: str
    count: int


@dataclass(frozen=True)
class Run:
    """One process of one side."""

    program: str
    command: str
    size: str
    dropout: float
    samples: Full | Dialogues
    rows: int
    options: tuple = ()
    label: str = ""
    bar: float | None = None

    @property
    def ours(self):
        return self.program == "sideburn"

    @property
    def side(self):
        return SIDES[self.program]


@dataclass(frozen=True)
class Case:
    """Our run, and theirs beside which it stands."""

    name: str
    title: str
    table: str
    ours: Run
    theirs: tuple = ()
    memory_bar: float | None = None

    def repetitions(self, reps, warmup):
        """How many of each a process makes of what was asked for: where one is long, fewer."""
        if self.table in (PRACTICE, START_UP):
            return 1, 0
        return reps, min(warmup, 1) if isinstance(self.ours.samples, Dialogues) else warmup

    def processes(self, rounds, epoch_rounds):
        """How many processes there are of each run."""
        return {PRACTICE: epoch_rounds, SIZE: 1}.get(self.table, rounds)


def all_cases(datasets, epoch_samples):
    """Every case; `datasets` names those at hand. The last is taken where one is enough."""
    return [
        *full_rows(),
        *real_batches(datasets),
        *decoding(),
        *engine(),
        epoch(datasets[-1], epoch_samples),
        start_up(),
        *sizes(),
    ]


def both(command, size, dropout, samples, rows, options=(), bar=None, other="hugging_face"):
    """The same run on both sides."""
    sides = ("sideburn", other)
    ours, theirs = (Run(side, command, size, dropout, samples, rows, tuple(options), bar=bar) for side in sides)
    return {"ours": ours, "theirs": (theirs,)}


def method_options(method, dropout):
    lora = ("--lora-dropout", "0.05") if method == "lora" and dropout else ()
    return ("--method", method, *lora)


def full_rows():
    bf16 = ("--dtype", "bf16")
    cases = [
        ("lora-small", "LoRA step, small", "small", "lora", 0.1, 1.4, 0.5, ()),
        ("lora-small-dropout0", "LoRA step, small, dropout 0", "small", "lora", 0.0, 1.05, 0.5, ()),
        ("lora-small-bf16", "LoRA step, small, bf16", "small", "lora", 0.1, 1.8, 0.5, bf16),
        ("lora-base", "LoRA step, base", "base", "lora", 0.1, 1.4, 0.5, ()),
        ("lora-base-dropout0", "LoRA step, base, dropout 0", "base", "lora", 0.0, 1.05, 0.5, ()),
        ("lora-base-bf16", "LoRA step, base, bf16", "base", "lora", 0.1, 1.8, 0.35, bf16),
        ("prompt-small", "prompt tuning step, small", "small", "prompt", 0.1, 1.4, 0.5, ()),
        ("full-small", "full fine-tuning step, small", "small", "full", 0.1, 1.2, 0.5, ()),
    ]
    for name, title, size, method, dropout, bar, memory_bar, more in cases:
        options = (*method_options(method, dropout), *more)
        runs = both("train", size, dropout, Full(8, 256, 64), 8, options, bar)
        yield Case(name, title + ", 8 x 256 + 64", SAME_WORK, **runs, memory_bar=memory_bar)
        if method == "full":
            # Theirs are in f32, as `TrainingArguments` has them by default.
            runs["ours"] = replace(runs["ours"], options=(*options, "--optim", "adamw_bnb_8bit"))
            title = f"{title}, ours with moments in 8 bits, 8 x 256 + 64"
            yield Case(f"{name}-8bit", title, SAME_WORK, **runs, memory_bar=0.35)


def real_batches(datasets):
    for size, dataset in [*(("small", dataset) for dataset in datasets), ("base", datasets[-1])]:
        samples = Dialogues(dataset, REAL_SAMPLES[size])
        runs = both("train", size, 0.1, samples, 8, method_options("lora", 0.1), 1.6)
        title = f"LoRA step, {size}, {CALLED[dataset]}, batches of 8 in file order"
        yield Case(f"lora-{size}-{dataset}", title, SAME_WORK, **runs, memory_bar=0.5)


def decoding():
    for rows, bar in ((1, 2.0), (8, 2.5)):
        runs = both("decode", "small", 0.1, Full(rows, 256, 64), rows, ("--new-tokens", "64"), bar)
        title = f"greedy decoding of 64 tokens, small, 256 source, batch {rows}"
        yield Case(f"decode-{rows}", title, SAME_WORK, **runs)
    for rows in (1, 8):
        options = ("--new-tokens", "64", "--num-beams", "4")
        runs = both("decode", "small", 0.1, Full(rows, 256, 64), rows, options, 3.0)
        title = f"search with 4 beams, 64 tokens, small, 256 source, batch {rows}"
        yield Case(f"beams-{rows}", title, SAME_WORK, **runs, memory_bar=0.5)


def engine():
    for compute in ("f32", "int8"):
        for beams in (1, 4):
            for rows in (1, 8):
                options = ("--new-tokens", "64", "--num-beams", str(beams), "--compute", compute)
                runs = both("decode", "small", 0.1, Full(rows, 256, 64), rows, options, 1.2, "ctranslate")
                how = "greedy" if beams == 1 else f"{beams} beams"
                title = f"{compute}, {how}, 64 tokens, small, 256 source, batch {rows}"
                yield Case(f"engine-{compute}-{beams}-{rows}", title, ENGINE, **runs)


def epoch(dataset, count):
    samples, options = Dialogues(dataset, count), method_options("lora", 0.1)

    def run(ours, label, bar, *flags):
        return Run("sideburn" if ours else "hugging_face", "train", "small", 0.1, samples, 8, (*options, *flags), label, bar)

    return Case(
        "epoch",
        f"LoRA epoch, small, {count} samples of {CALLED[dataset]}",
        PRACTICE,
        run(True, "token-budget batches", None, "--batching", "budget"),
        (
            run(False, "`group_by_length`, batches of 8", 1.5, "--batching", "group_by_length"),
            run(False, "batches of 8 padded to 512 + 128", 6.0, "--padding", "notebook"),
        ),
    )


def start_up():
    runs = both("train", "small", 0.1, Full(8, 256, 64), 8, method_options("lora", 0.1), 5.0)
    return Case("start-up", "LoRA, small, 8 x 256 + 64", START_UP, **runs)


def sizes():
    shapes = [(8, source) for source in (64, 128, 256, 512, 1024)] + [(rows, 256) for rows in (1, 2, 4, 16, 32)]
    for rows, source in shapes:
        samples = Full(rows, source, source // 4)
        ours = Run("sideburn", "train", "small", 0.1, samples, rows, method_options("lora", 0.1))
        yield Case(f"size-{rows}x{source}", f"{rows} x {source} + {source // 4}", SIZE, ours)


def checks(dataset):
    """Runs whose losses, or tokens, must agree, since nothing in them is drawn at random; each with its title."""

    def pair(command, size, samples, rows, options, their_options=()):
        ours = Run("sideburn", command, size, 0.0, samples, rows, tuple(options))
        return ours, Run("hugging_face", command, size, 0.0, samples, rows, (*options, *their_options))

    lora, real = ("--method", "lora"), Dialogues(dataset, 8)
    yield "LoRA, small, full rows, 1 step", *pair("train", "small", Full(8, 256, 64), 8, lora)
    yield "LoRA, base, full rows, 1 step", *pair("train", "base", Full(2, 256, 64), 2, lora)
    yield "LoRA, small, dialogues, 1 step, theirs padded", *pair("train", "small", real, 8, lora)
    padded = pair("train", "small", real, 8, lora, ("--padding", "notebook"))
    yield "LoRA, small, dialogues, 1 step, theirs padded to 512 + 128", *padded
    yield "full fine-tuning, small, dialogues, 4 steps", *pair("train", "small", real, 2, ("--method", "full"))
    yield "greedy decoding, small, 64 tokens", *pair("decode", "small", Full(8, 256, 64), 8, ("--new-tokens", "64"))
    beams = ("--new-tokens", "64", "--num-beams", "4")
    yield "search with 4 beams, small, 64 tokens", *pair("decode", "small", Full(8, 256, 64), 8, beams)
