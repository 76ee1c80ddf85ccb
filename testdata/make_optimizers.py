"""Writes OUT/optimizers/: fifty updates by each optimiser, fifty rates of each schedule, and the losses of fifty steps with label
smoothing and with noise on the embedded tokens, as transformers' Trainer makes them.

    OMP_NUM_THREADS=1 python make_optimizers.py OUT    # reads t5_gated_untied/ and trajectory/ here

Gradients are exact in f32 and follow from step and element, so that no rounding of one update reaches the next one's gradient.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn import Parameter
from transformers import T5ForConditionalGeneration, TrainingArguments, get_scheduler
from transformers.trainer import Trainer
from transformers.trainer_pt_utils import LabelSmoother

HERE = Path(__file__).parent

STEPS = 50
# A matrix whose state bitsandbytes keeps in 8 bits, with a short last block, and a norm, which is not decayed.
SHAPES = {"shared.weight": (95, 48), "decoder.final_layer_norm.weight": (48,)}

OPTIMIZERS = {
    "adamw_torch": {},
    "adafactor": {},
    "lion_32bit": {},
    "sgd": {"optim_args": "momentum=0.9"},
    "adamw_bnb_8bit": {},
}

SCHEDULES = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.25}),
    ("cosine_with_restarts", {}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("polynomial", {}),
    ("polynomial", {"power": 2.0, "lr_end": 1e-4}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 5}),
    ("warmup_stable_decay", {"num_decay_steps": 15}),
    ("warmup_stable_decay", {"num_decay_steps": 20, "decay_type": "1-sqrt", "warmup_type": "cosine", "min_lr_ratio": 0.1}),
    ("warmup_stable_decay", {"num_decay_steps": 10, "num_stable_steps": 20, "decay_type": "linear", "warmup_type": "1-sqrt"}),
]


def whole(shape, step):
    """Whole numbers between -1000 and 1000 that look random."""
    i = np.arange(np.prod(shape), dtype=np.int64)
    return (i * 7919 + step * 104729 + (i * i) % 1009 * (step + 3)) % 2001 - 1000


def exact(shape, step):
    """Of magnitudes from 2^-8 to 2^-1: exact in f32."""
    i = np.arange(np.prod(shape), dtype=np.int64)
    return torch.tensor((whole(shape, step) * 2.0 ** (i % 8 - 18)).astype(np.float32).reshape(shape))


def optimizers(out):
    tensors = {}
    for name, options in OPTIMIZERS.items():
        args = TrainingArguments("/tmp/none", optim=name, learning_rate=1e-2, weight_decay=0.1, use_cpu=True, **options)
        parameters = {key: Parameter(exact(shape, 1000)) for key, shape in SHAPES.items()}
        groups = [
            {"params": [value], "weight_decay": 0.0 if "norm" in key else args.weight_decay}
            for key, value in parameters.items()
        ]
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = kind(groups, **options)
        for step in range(STEPS):
            for key, value in parameters.items():
                value.grad = exact(SHAPES[key], step)
            optimizer.step()
            if step + 1 in (1, 10, STEPS):
                for key, value in parameters.items():
                    tensors[f"{name}.{step + 1}.{key}"] = value.detach().clone()
        for key, value in parameters.items():
            for part, state in optimizer.state[value].items():
                if torch.is_tensor(state) and state.ndim > 0 and not part.startswith("qmap"):
                    tensors[f"{name}.state.{key}.{part}"] = state.clone().contiguous()
    save_file(tensors, out / "updates.safetensors")


def schedules(out):
    cases = []
    for name, kwargs in SCHEDULES:
        for warmup in (0, 7):
            optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=2e-3)
            schedule = get_scheduler(name, optimizer, warmup, STEPS, scheduler_specific_kwargs=dict(kwargs))
            rates = []
            for _ in range(STEPS):
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                schedule.step()
            cases.append({"name": name, "kwargs": kwargs, "warmup_steps": warmup, "rates": rates})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (out / "schedules.json").write_text(f"[\n{lines}\n]\n")


def mix(z):
    """SplitMix64, as `Key` of sideburn-batch."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


GOLDEN = 0x9E3779B97F4A7C15


def fold_in(key, part):
    return mix(key ^ mix((part * GOLDEN + 0xD1B54A32D192ED03) % 2**64))


def fold_in_name(key, name):
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return fold_in(key, value)


def noise(step, reader, lengths, shape, alpha):
    """What Sideburn draws for a step of a run with seed 42; `transformers` draws from PyTorch's generator."""
    key = fold_in(fold_in(fold_in_name(mix((42 + GOLDEN) % 2**64), "step"), step), 0)
    key = fold_in_name(fold_in_name(key, "neftune"), reader)
    out, element, width = torch.zeros(shape), 0, shape[2]
    for row, length in enumerate(lengths):
        size = alpha / (length * width) ** 0.5
        for place in range(length):
            for column in range(width):
                bits = mix((key + (element + 1) * GOLDEN) % 2**64)
                out[row, place, column] = (2.0 * ((bits >> 11) * 2.0**-53) - 1.0) * size
                element += 1
    return out


def losses(out):
    batches = load_file(HERE / "trajectory/t5_gated_untied__lora/batches.safetensors")
    cases = {}
    for name, smoothing, alpha in [("label_smoothing", 0.1, None), ("neftune", 0.0, 5.0)]:
        base = T5ForConditionalGeneration.from_pretrained(HERE / "t5_gated_untied")
        adapter = HERE / "trajectory/t5_gated_untied__lora/initial_adapter"
        model = PeftModel.from_pretrained(base, adapter, is_trainable=True).train()
        trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
        found = {"losses": [], "grad_norms": []}
        for step in range(STEPS):
            ids, mask, labels = (batches[f"{key}.{step % 4}"] for key in ("input_ids", "attention_mask", "labels"))
            inputs = {"input_ids": ids, "decoder_input_ids": base._shift_right(labels)}
            if alpha is not None:
                lengths = {"encoder": mask.sum(1), "decoder": (labels != -100).sum(1)}
                embedded = {half: base.shared(x) for half, x in zip(lengths, inputs.values())}
                for half, x in embedded.items():
                    x += noise(step, f"{half}.embed_tokens", lengths[half].tolist(), x.shape, alpha)
                inputs = {"inputs_embeds": embedded["encoder"], "decoder_inputs_embeds": embedded["decoder"]}
            output = base(attention_mask=mask, labels=labels, **inputs)
            loss = LabelSmoother(smoothing)(output, labels) if smoothing else output.loss
            optimizer.zero_grad()
            loss.backward()
            found["losses"].append(loss.item())
            found["grad_norms"].append(torch.nn.utils.get_total_norm([value.grad for value in trained]).item())
            optimizer.step()
        cases[name] = found
    (out / "losses.json").write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]) / "optimizers"
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    optimizers(folder)
    schedules(folder)
    losses(folder)
