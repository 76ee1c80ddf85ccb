"""Their side of the comparison: transformers + peft, one case in one process, and one JSON line of what was measured.

    python hugging_face.py weights --config CONFIG_JSON --out DIR
    python hugging_face.py train   --model DIR --samples FILE --rows N --method lora|prompt|full ...
    python hugging_face.py products --tokens N --width N
    python hugging_face.py decode  --model DIR --samples FILE --rows N --new-tokens N ...

`run.py` runs this beside `sideburn.rs`, which takes the same flags and prints the same fields. What is timed is what a
training loop written with care would do: batches are tensors before the clock starts, AdamW is the fused one, gradients
are set to None, labels of -100 and an attention mask stand for padding, attention is the library's default (`sdpa`).
Each step also clips the global norm to 1 and reads the loss, as `transformers.Trainer` does, and as ours does.
"""

import argparse
import itertools
import json
import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

# The widths that DialogSum notebooks pad every source and target to.
NOTEBOOK_SOURCE, NOTEBOOK_TARGET = 512, 128
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TICKS = os.sysconf("SC_CLK_TCK")


def main():
    args = parse()
    torch.set_num_interop_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    commands = {"weights": write_weights, "train": train, "decode": decode, "products": products}
    libraries_mib = resident_mib("VmRSS")
    record = commands[args.command](args)
    if record:
        print(json.dumps(record | {"libraries_mib": libraries_mib}))


def parse():
    parser = argparse.ArgumentParser(description="Hugging Face's side of benches/peer/run.py")
    commands = parser.add_subparsers(dest="command", required=True)
    weights = commands.add_parser("weights", help="write a model directory with seeded random weights")
    weights.add_argument("--config", type=Path, required=True, help="config.json of the architecture")
    weights.add_argument("--out", type=Path, required=True)
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--device", default="cpu", help="cpu or cuda")
    place.add_argument("--dtype", choices=list(DTYPES), default="f32", help="of the base")
    place.add_argument("--matmul-precision", choices=["highest", "high", "medium"], default="highest")
    both = argparse.ArgumentParser(add_help=False, parents=[place])
    both.add_argument(
        "--model", type=Path, required=True, help="directory of the base model; of random weights, if it is but config.json"
    )
    both.add_argument("--attention", choices=["sdpa", "eager"], help="[the library's default]")
    both.add_argument("--samples", type=Path, required=True, help="token ids; a repetition goes through the file once")
    both.add_argument("--rows", type=int, required=True, help="rows of a batch")
    both.add_argument("--warmup", type=int, default=0, help="repetitions that are not counted")
    both.add_argument("--reps", type=int, default=1, help="repetitions that are counted")
    steps = commands.add_parser("train", parents=[both], help="time training steps")
    steps.add_argument("--method", choices=["lora", "prompt", "full"], required=True)
    steps.add_argument("--lora-dropout", type=float, default=0.0)
    steps.add_argument("--batching", choices=["order", "group_by_length"], default="order")
    steps.add_argument("--padding", choices=["longest", "notebook"], default="longest")
    steps.add_argument("--compile", action="store_true", help="torch.compile the model")
    multiplying = commands.add_parser("products", parents=[place], help="time the products of a feed-forward layer")
    multiplying.add_argument("--tokens", type=int, required=True, help="rows")
    multiplying.add_argument("--width", type=int, required=True, help="of the layer, which is four times as wide within")
    decoding = commands.add_parser("decode", parents=[both], help="time decoding, greedily or with beams")
    decoding.add_argument("--new-tokens", type=int, required=True, help="every row writes this many; none ends before")
    decoding.add_argument("--num-beams", type=int, default=1)
    return parser.parse_args()


def write_weights(args):
    """A model directory as the hub has it: the configuration as published, and a head of its own.

    transformers 5 ties the head of every T5 that it makes, and says so in the configuration that it writes; FLAN-T5's
    head is not tied.
    """
    torch.manual_seed(0)
    config = T5Config.from_pretrained(args.config)
    model = T5ForConditionalGeneration(config)
    head = torch.randn_like(model.shared.weight) * config.d_model**-0.5
    model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(args.out)
    shutil.copyfile(args.config, args.out / "config.json")
    load(args.out)


def opened(args):
    """The model of a case, where and in the dtype in which it is to run."""
    torch.set_float32_matmul_precision(args.matmul_precision)
    if (args.model / "model.safetensors").exists():
        return load(args.model, DTYPES[args.dtype], args.attention).to(args.device)
    config = T5Config.from_pretrained(args.model, **({"attn_implementation": args.attention} if args.attention else {}))
    torch.manual_seed(0)
    with torch.device(args.device):
        return T5ForConditionalGeneration(config).to(DTYPES[args.dtype])


def load(directory, dtype=torch.float32, attention=None):
    options = {"attn_implementation": attention} if attention else {}
    model = T5ForConditionalGeneration.from_pretrained(directory, dtype=dtype, **options)
    assert model.lm_head.weight is not model.shared.weight, "the head was tied"
    assert not model.config.scale_decoder_outputs, "the decoder's outputs are scaled"
    return model


# ------------------------------------------------------------------------------------------------------------- batches


def read_samples(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def in_order(samples, rows):
    return [samples[start : start + rows] for start in range(0, len(samples), rows)]


def grouped_by_length(samples, rows):
    """The batches of `TrainingArguments(group_by_length=True)`."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    lengths = [len(sample["source"]) for sample in samples]
    sampler = LengthGroupedSampler(rows, lengths=lengths, generator=torch.Generator().manual_seed(0))
    return in_order([samples[index] for index in sampler], rows)


def padded(rows, width, value):
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def collate(batch, padding):
    sources, targets = ([sample[side] for sample in batch] for side in ("source", "target"))
    if padding == "notebook":
        source_width, target_width = NOTEBOOK_SOURCE, NOTEBOOK_TARGET
    else:
        source_width, target_width = (max(map(len, rows)) for rows in (sources, targets))
    return {
        "input_ids": padded(sources, source_width, 0),
        "attention_mask": padded([[1] * len(source) for source in sources], source_width, 0),
        "labels": padded(targets, target_width, -100),
    }


# ---------------------------------------------------------------------------------------------------------------- cases


def train(args):
    samples = read_samples(args.samples)
    batches = in_order(samples, args.rows) if args.batching == "order" else grouped_by_length(samples, args.rows)
    batches = [on(args.device, collate(batch, args.padding)) for batch in batches]
    base = opened(args)
    model = with_method(base, args.method, args.lora_dropout).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)

    forward = torch.compile(model) if args.compile else model

    def step(batch):
        loss = forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    ready_at = time.time()
    laps, losses, first_step_at = Laps(), [], None
    for _ in range(args.warmup + args.reps):
        for batch in batches:
            losses.append(step(batch))
            first_step_at = first_step_at or time.time()
        laps.lap()
    return laps.record(args.warmup) | {
        "batches": len(batches),
        "tokens": sum(len(sample["source"]) + len(sample["target"]) for sample in samples),
        "computed_tokens": sum(batch["input_ids"].numel() + batch["labels"].numel() for batch in batches),
        "losses": losses,
        "trainable": sum(parameter.numel() for parameter in parameters),
        "attention": base.config._attn_implementation,
        "ready_at": ready_at,
        "first_step_at": first_step_at,
        "device_mib": device_mib(args.device),
    }


def on(device, batch):
    return {name: tensor.to(device) for name, tensor in batch.items()}


def device_mib(device):
    """The most that the GPU's allocator has taken, in MiB."""
    return torch.cuda.max_memory_reserved() / 2**20 if device.startswith("cuda") else None


def with_method(model, method, lora_dropout):
    if method == "full":
        return model
    if method == "lora":
        config = peft.LoraConfig(
            r=32, lora_alpha=32, lora_dropout=lora_dropout, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM"
        )
    else:
        config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=20)
    return peft.get_peft_model(model, config)


def decode(args):
    samples = read_samples(args.samples)
    batches = [on(args.device, collate(batch, "longest")) for batch in in_order(samples, args.rows)]
    model = opened(args).eval()
    # Without an end token no row ends early, and nothing has to keep it from ending.
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": args.new_tokens, "do_sample": False, "num_beams": args.num_beams, "use_cache": True}

    ready_at = time.time()
    laps, ids = Laps(), []
    with torch.inference_mode():
        for _ in range(args.warmup + args.reps):
            written = [
                model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options)
                for batch in batches
            ]
            ids = list(itertools.chain.from_iterable(rows[:, 1:].tolist() for rows in written))
            laps.lap()
    assert all(len(row) == args.new_tokens for row in ids), "a row ended early"
    tokens = len(samples) * args.new_tokens
    return laps.record(args.warmup) | {
        "batches": len(batches),
        "tokens": tokens,
        "computed_tokens": tokens,
        "ids": ids,
        "attention": model.config._attn_implementation,
        "ready_at": ready_at,
        "device_mib": device_mib(args.device),
    }


def products(args):
    """The rate of products [m, k] times [k, n], the weight as it is stored, and transposed for the gradient."""
    torch.set_float32_matmul_precision(args.matmul_precision)
    wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    found = []
    tokens, width = args.tokens, args.width
    for m, k, n in [(tokens, width, width), (tokens, width, 4 * width), (tokens, 4 * width, width), (width, tokens, 32)]:
        options = {"device": args.device, "dtype": DTYPES[args.dtype]}
        lhs, rhs = torch.ones(m, k, **options), torch.ones(n, k, **options).T
        count, seconds = 1, 0.0
        for _ in range(2):
            lhs @ rhs
        while seconds <= 0.2:
            wait()
            start = time.perf_counter()
            for _ in range(count):
                lhs @ rhs
            wait()
            seconds, done, count = time.perf_counter() - start, count, 2 * count
        seconds /= done
        found.append({"shape": f"{m} x {k} x {n}", "seconds": seconds, "tflops": 2 * m * k * n / seconds / 1e12})
    return {"products": found}


# ------------------------------------------------------------------------------------------------------------ measuring


class Laps:
    """The time of each repetition, and how many cores other processes kept busy meanwhile."""

    def __init__(self):
        self.seconds, self.own_cores, self.other_cores = [], [], []
        self.last = reading()

    def lap(self):
        clock, own, machine = now = reading()
        last_clock, last_own, last_machine = self.last
        seconds = clock - last_clock
        self.seconds.append(seconds)
        self.own_cores.append((own - last_own) / seconds)
        self.other_cores.append(max(0.0, (machine - last_machine - (own - last_own)) / seconds))
        self.last = now

    def record(self, warmup):
        return {
            "seconds": self.seconds[warmup:],
            "own_cores": self.own_cores[warmup:],
            "other_cores": self.other_cores[warmup:],
            "peak_mib": resident_mib("VmHWM"),
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "peft": peft.__version__,
            },
        }


def reading():
    """The clock, and the processor seconds spent so far: by this process, and by all together."""
    own = os.times()
    # User, nice, system, idle, waiting, interrupts, soft interrupts; time stolen by the host is nobody's.
    machine = [int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:8]]
    return time.perf_counter(), own.user + own.system, (sum(machine) - machine[3] - machine[4]) / TICKS


def resident_mib(field):
    """`VmRSS` or `VmHWM` of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
