"""Makes the reference numbers of this folder with PyTorch, transformers and peft:

    OMP_NUM_THREADS=1 python make_goldens.py OUT

Reads the tiny checkpoints (see make_base.py) and the configs of the FLAN-T5 models from the folder it lies in, and
writes a whole copy of that folder's data to OUT. Needs no network. README.md says what every file is.
"""

import copy
import json
import math
import os
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

HERE = Path(__file__).resolve().parent
BASES = ("t5_gated_untied", "t5_relu_tied")
GIVEN = [
    "t5_gated_untied/config.json",
    "t5_gated_untied/model.safetensors",
    "t5_relu_tied/config.json",
    "t5_relu_tied/model.safetensors",
    "flan_t5_small/config.json",
    "flan_t5_base/config.json",
    "flan_t5_xxl/config.json",
]

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", message="Could not find a config file in base/")
warnings.filterwarnings("ignore", category=FutureWarning)


# -------------------------------------------------------------------------------------------------------------- helpers


def write_tensors(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def load_base(directory):
    model = T5ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    untied = json.loads((Path(directory) / "config.json").read_text()).get("tie_word_embeddings") is False
    # transformers 5 ties what it believes to be tied: make sure that it kept the stored head.
    assert (model.lm_head.weight is not model.shared.weight) == untied, directory
    assert model.config.scale_decoder_outputs != untied, directory
    return model


def inputs():
    """Four rows, padded on the right: inputs of 12, 9, 7 and 4 tokens, labels of 7, 6, 4 and 2."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 256, (4, 12), generator=generator)
    mask = torch.zeros(4, 12, dtype=torch.long)
    for row, length in enumerate((12, 9, 7, 4)):
        mask[row, :length] = 1
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(2, 256, (4, 7), generator=generator)
    for row, length in enumerate((7, 6, 4, 2)):
        labels[row, length - 1] = 1
        labels[row, length:] = -100
    return dict(input_ids=ids * mask, attention_mask=mask, labels=labels)


def lora_config(**changes):
    options = dict(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q", "v"])
    return LoraConfig(task_type="SEQ_2_SEQ_LM", **{**options, **changes})


def file_key(parameter_name):
    """The name that a parameter has in `adapter_model.safetensors`."""
    name = parameter_name.replace(".modules_to_save.", ".").replace(".default.", ".").removesuffix(".default")
    return name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")


def save_adapter(model, directory):
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    write_sorted_config(directory / "adapter_config.json")


def write_sorted_config(path):
    # peft writes Python sets here, in an order that changes from run to run.
    config = json.loads(path.read_text())
    for field in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(config.get(field), list):
            config[field].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


# ---------------------------------------------------------------------------------------------------------- base models


def base_io(out, name):
    model, batch = load_base(out / name), inputs()
    positions = torch.arange(-200, 201)
    with torch.no_grad():
        result = model(**batch)
        unmasked = model(input_ids=batch["input_ids"], labels=batch["labels"])
    write_tensors(
        out / name / "io.safetensors",
        batch
        | dict(
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(batch["labels"]),
            logits=result.logits,
            logits_no_mask=unmasked.logits,
            loss=result.loss.reshape(1),
            encoder_last_hidden_state=result.encoder_last_hidden_state,
            rel_pos=positions,
            bucket_bidirectional=T5Attention._relative_position_bucket(positions, True, 32, 128),
            bucket_causal=T5Attention._relative_position_bucket(positions, False, 32, 128),
        ),
    )


def base_generation(out, name):
    model, batch = load_base(out / name), inputs()
    cases = dict(greedy={}, greedy_ngram2=dict(no_repeat_ngram_size=2))
    record = {}
    for case, changes in cases.items():
        arguments = dict(num_beams=1, max_new_tokens=24) | changes
        with torch.no_grad():
            result = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
                **arguments,
            )
        # How far the best token is from the second best, at the closest: how safe the sequences are against rounding.
        best = [scores.topk(2, -1).values for scores in result.scores]
        gap = round(min(float((top[:, 0] - top[:, 1]).min()) for top in best), 5)
        record[case] = dict(args=arguments, sequences=result.sequences.tolist(), min_top2_gap=gap)
    write_json(out / name / "generation.json", record)


def config_of_version_5(out):
    model = load_base(out / "t5_gated_untied")
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        stored, original = (load_file(Path(d) / "model.safetensors") for d in (directory, out / "t5_gated_untied"))
        assert stored.keys() == original.keys() and all(torch.equal(stored[k], original[k]) for k in stored)
        shutil.copyfile(Path(directory) / "config.json", out / "t5_gated_untied" / "config_v5.json")


# ----------------------------------------------------------------------------------------------------------------- LoRA


def random_adapter(out, base, config, directory):
    """A LoRA adapter whose A and B are both random, as `save_pretrained` writes it."""
    torch.manual_seed(11)
    model = get_peft_model(load_base(out / base), copy.deepcopy(config))
    model.peft_config["default"].base_model_name_or_path = f"base/{base}"
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(0.12 * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, directory)


def lora_io(out, base):
    directory = out / "lora" / base
    random_adapter(out, base, lora_config(), directory)
    # Read back from the files, so that the numbers are those that a reader of the files must find.
    model = PeftModel.from_pretrained(load_base(out / base), directory, is_trainable=True).eval()
    batch = inputs()
    with torch.no_grad():
        result = model(**batch)
    # In f64: the f32 gradients of PyTorch are 1e-5 away from these, as far as a good implementation may be.
    model.double()(**batch).loss.backward()
    gradients = {f"grad.{file_key(n)}": p.grad.float() for n, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() == {f"grad.{key}" for key in load_file(directory / "adapter_model.safetensors")}
    write_tensors(
        directory / "io.safetensors",
        batch
        | dict(
            decoder_input_ids=model.base_model.model.prepare_decoder_input_ids_from_labels(batch["labels"]),
            logits=result.logits,
            loss=result.loss.reshape(1),
        )
        | gradients,
    )


def lora_variants(out):
    """The ways to say which layers are adapted, each on t5_gated_untied and with the inputs of lora/t5_gated_untied."""
    variants = dict(
        lora_targets_list7=["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
        lora_targets_regex=r".*decoder.*(SelfAttention|EncDecAttention)\.(q|v)",
        lora_all_linear="all-linear",
        lora_targets_fullpath=["encoder.block.0.layer.0.SelfAttention.q", "EncDecAttention.v"],
    )
    for name, targets in variants.items():
        directory = out / "lora" / "variants" / name
        random_adapter(out, "t5_gated_untied", lora_config(target_modules=targets), directory)
        model = PeftModel.from_pretrained(load_base(out / "t5_gated_untied"), directory).eval()
        with torch.no_grad():
            logits = model(**inputs()).logits
        write_tensors(directory / "io.safetensors", dict(logits=logits))


# --------------------------------------------------------------------------------------------------------- trajectories


def training_batches():
    """Four batches, used in turn. Each has 26 target tokens."""
    generator = torch.Generator().manual_seed(21)
    batches = []
    for _ in range(4):
        ids = torch.randint(2, 256, (4, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 8:] = 0
        mask[3, 5:] = 0
        labels = torch.randint(2, 256, (4, 7), generator=generator)
        labels[2, 5:] = -100
        labels[:, -1] = torch.where(labels[:, -1] == -100, -100, 1)
        batches.append(dict(input_ids=ids * mask, attention_mask=mask, labels=labels))
    return batches


def uneven_batches():
    """The same four batches with some labels cut short: 26, 11, 19 and 7 target tokens."""
    batches = training_batches()
    lengths = (None, (3, 2, 1, 5), (4, 6, 5, 4), (2, 1, 2, 2))
    for batch, cut in zip(batches, lengths):
        for row, length in enumerate(cut or ()):
            batch["labels"][row, length - 1] = 1
            batch["labels"][row, length:] = -100
    assert [target_tokens(batch) for batch in batches] == [26, 11, 19, 7]
    return batches


def target_tokens(batch):
    return int((batch["labels"] != -100).sum())


def decays(parameter_name):
    """Whether transformers.Trainer lets a parameter decay: norms and what is called a bias do not."""
    return not re.search(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)", parameter_name.lower())


def train(model, batches, steps=20, accumulation=1, clip=None, warmup=None, after_step=None, loraplus_lr_ratio=None):
    """`steps` steps of AdamW on `batches`: what to record of them.

    The loss of a step is the sum of the token losses of all of its micro-batches over the number of their target
    tokens.
    """
    lr, weight_decay = 1e-3, 0.01
    model.train()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        dict(params=[p for name, p in trainable.items() if decays(name)], weight_decay=weight_decay),
        dict(params=[p for name, p in trainable.items() if not decays(name)], weight_decay=0.0),
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)
    if loraplus_lr_ratio is not None:
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=loraplus_lr_ratio, loraplus_weight_decay=weight_decay
        )
    schedule = None
    if warmup is not None:
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    losses, means_of_means, grad_norms, lrs = [], [], [], []
    for step in range(steps):
        chosen = [batches[(step * accumulation + i) % len(batches)] for i in range(accumulation)]
        count = sum(map(target_tokens, chosen))
        optimizer.zero_grad()
        total, means = 0.0, []
        for batch in chosen:
            result = model(**batch)
            loss = result.loss
            if accumulation > 1:
                logits, labels = result.logits.flatten(0, 1), batch["labels"].flatten()
                loss = cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / count
            loss.backward()
            total += loss.item()
            means.append(result.loss.item())
        grad_norms.append(float(torch.nn.utils.clip_grad_norm_(trainable.values(), clip or math.inf)))
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if after_step is not None:
            after_step(step)
        losses.append(total)
        means_of_means.append(sum(means) / len(means))
    record = dict(
        optimizer=dict(name="adamw", lr=lr, betas=[0.9, 0.999], eps=1e-8, weight_decay=weight_decay),
        schedule=None if warmup is None else dict(name="linear", warmup_steps=warmup, total_steps=steps),
        max_grad_norm=clip,
        steps=steps,
        gradient_accumulation_steps=accumulation,
        batch_order="micro-batch i of step s (both from 0) is batch (s * gradient_accumulation_steps + i) % 4",
        target_tokens=[target_tokens(batch) for batch in batches],
        trainable_parameters=sum(p.numel() for p in trainable.values()),
        losses=losses,
        grad_norms=grad_norms,
        lrs=lrs,
    )
    if loraplus_lr_ratio is not None:
        record["loraplus_lr_ratio"] = loraplus_lr_ratio
    if accumulation > 1:
        record["means_of_micro_batch_means"] = means_of_means
    return record


def trajectory(out, base, method, config, batches, **options):
    directory = out / "trajectory" / f"{base}__{method}"
    torch.manual_seed(5)
    model = load_base(out / base)
    if config is not None:
        model = get_peft_model(model, copy.deepcopy(config))
        model.peft_config["default"].base_model_name_or_path = f"base/{base}"
        save_adapter(model, directory / "initial_adapter")
    write_tensors(
        directory / "batches.safetensors",
        {f"{name}.{i}": tensor for i, batch in enumerate(batches) for name, tensor in batch.items()},
    )
    record = dict(base=base, method="full" if config is None else "lora") | train(model, batches, **options)
    write_json(directory / "trajectory.json", record)
    if config is not None:
        trained = {file_key(name): p for name, p in model.named_parameters() if p.requires_grad}
        write_tensors(directory / "final.safetensors", trained)


def trajectories(out):
    trajectory(out, "t5_gated_untied", "lora", lora_config(), training_batches())
    trajectory(out, "t5_relu_tied", "lora", lora_config(), training_batches())
    trajectory(
        out, "t5_gated_untied", "lora_clip1_warmup5_linear", lora_config(), training_batches(), clip=1.0, warmup=5
    )
    trajectory(out, "t5_gated_untied", "lora_plus", lora_config(), training_batches(), loraplus_lr_ratio=16)
    trajectory(out, "t5_gated_untied", "full", None, training_batches())
    trajectory(out, "t5_gated_untied", "lora_accum2", lora_config(), uneven_batches(), accumulation=2)


def lr_schedules(out):
    def factors(make, steps=100):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule, values = make(optimizer), []
        for _ in range(steps):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return values

    schedules = dict(
        linear_w10_t100=lambda o: transformers.get_linear_schedule_with_warmup(o, 10, 100),
        cosine_w10_t100=lambda o: transformers.get_cosine_schedule_with_warmup(o, 10, 100),
        constant_w10=lambda o: transformers.get_constant_schedule_with_warmup(o, 10),
    )
    write_json(out / "lr_schedules.json", {name: factors(make) for name, make in schedules.items()})


# ------------------------------------------------------------------------------------ FLAN-T5-small, weights by formula

MASK = 0xFFFF_FFFF_FFFF_FFFF
GOLDEN = 0x9E37_79B9_7F4A_7C15


def mix(z):
    """SplitMix64's finaliser, on a Python integer or on an array of uint64."""
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & MASK
    return z ^ (z >> 31)


def key_from_seed(seed):
    return mix((seed + GOLDEN) & MASK)


def fold_in(key, part):
    return mix(key ^ mix((part * GOLDEN + 0xD1B5_4A32_D192_ED03) & MASK))


def fold_in_name(key, name):
    fnv1a = 0xCBF2_9CE4_8422_2325
    for byte in name.encode():
        fnv1a = ((fnv1a ^ byte) * 0x0000_0100_0000_01B3) & MASK
    return fold_in(key, fnv1a)


def uniform(key, count):
    """Elements 0, 1, ..., count - 1 of the stream of `key`: numbers in [0, 1) as float64."""
    index = np.arange(1, count + 1, dtype=np.uint64)
    bits = mix(np.uint64(key) + index * np.uint64(GOLDEN))
    return (bits >> np.uint64(11)).astype(np.float64) * (1.0 / (1 << 53))


def std_and_mean(name, config):
    d_model, d_kv, d_ff = config["d_model"], config["d_kv"], config["d_ff"]
    parts = name.removesuffix(".weight").split(".")
    if "layer_norm" in parts[-1]:
        return 0.1, 1.0
    std = {
        "q": 1 / math.sqrt(d_model * d_kv),
        "k": 1 / math.sqrt(d_model),
        "v": 1 / math.sqrt(d_model),
        "o": 1 / math.sqrt(config["num_heads"] * d_kv),
        "wi_0": 1 / math.sqrt(d_model),
        "wi_1": 1 / math.sqrt(d_model),
        "wo": 1 / math.sqrt(d_ff),
        "relative_attention_bias": 0.5,
        "shared": 1.0,
        "lm_head": 8 / math.sqrt(d_model),
        "lora_A": 1 / math.sqrt(d_model),
        # Small in the queries: with 0.05 there too, attention is so sharp that PyTorch's f32 gradient is 7e-6 off.
        "lora_B": 0.01 if parts[-2:-1] == ["q"] else 0.05,
    }[parts[-1]]
    return std, 0.0


def formula_weight(name, shape, config):
    std, mean = std_and_mean(name, config)
    u = uniform(fold_in_name(key_from_seed(1), name), math.prod(shape))
    return ((2.0 * u - 1.0) * math.sqrt(3.0) * std + mean).astype(np.float32).reshape(shape)


def t5_shapes(config):
    """The name and shape of every tensor of an untied, gated T5 checkpoint."""
    d, inner, ff, heads = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"], config["num_heads"]
    shapes = {"shared.weight": (config["vocab_size"], d), "lm_head.weight": (config["vocab_size"], d)}
    for stack, layers in (("encoder", config["num_layers"]), ("decoder", config["num_decoder_layers"])):
        attentions = ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
        for block in range(layers):
            for i, attention in enumerate(attentions):
                layer = f"{stack}.block.{block}.layer.{i}"
                shapes |= {f"{layer}.{attention}.{x}.weight": (inner, d) for x in "qkv"}
                shapes[f"{layer}.{attention}.o.weight"] = (d, inner)
                shapes[f"{layer}.layer_norm.weight"] = (d,)
                if block == i == 0:
                    buckets = config["relative_attention_num_buckets"]
                    shapes[f"{layer}.{attention}.relative_attention_bias.weight"] = (buckets, heads)
            layer = f"{stack}.block.{block}.layer.{len(attentions)}"
            shapes |= {f"{layer}.DenseReluDense.{x}.weight": (ff, d) for x in ("wi_0", "wi_1")}
            shapes[f"{layer}.DenseReluDense.wo.weight"] = (d, ff)
            shapes[f"{layer}.layer_norm.weight"] = (d,)
        shapes[f"{stack}.final_layer_norm.weight"] = (d,)
    return shapes


def flan_t5_small(out):
    directory = out / "flan_t5_small"
    config = json.loads((directory / "config.json").read_text())
    weights = {name: formula_weight(name, shape, config) for name, shape in t5_shapes(config).items()}
    write_json(
        directory / "weights.json",
        {
            name: dict(shape=w.shape, first=w.flatten()[:3].tolist(), sum=float(w.sum(dtype=np.float64)))
            for name, w in sorted(weights.items())
        },
    )
    with tempfile.TemporaryDirectory() as checkpoint:
        shutil.copy(directory / "config.json", checkpoint)
        save_file(
            {name: torch.from_numpy(w) for name, w in weights.items()},
            Path(checkpoint) / "model.safetensors",
            metadata=dict(format="pt"),
        )
        model = load_base(checkpoint)
    loaded = model.state_dict()
    assert loaded.keys() - weights.keys() <= {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert all(np.array_equal(loaded[name].numpy(), w) for name, w in weights.items())

    generator = torch.Generator().manual_seed(31)
    ids = torch.randint(2, config["vocab_size"], (2, 24), generator=generator)
    mask = torch.ones_like(ids)
    ids[0, 23] = ids[1, 12] = 1
    ids[1, 13:] = mask[1, 13:] = 0
    labels = torch.randint(2, config["vocab_size"], (2, 8), generator=generator)
    labels[0, 7] = labels[1, 4] = 1
    labels[1, 5:] = -100
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    with torch.no_grad():
        result = model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_input_ids, labels=labels)
    write_tensors(
        directory / "io.safetensors",
        dict(
            input_ids=ids,
            attention_mask=mask,
            decoder_input_ids=decoder_input_ids,
            labels=labels,
            logits_every_16=result.logits[..., ::16],
            log_normaliser=result.logits.logsumexp(-1),
            loss=result.loss.reshape(1),
            encoder_last_hidden_state=result.encoder_last_hidden_state,
        ),
    )
    print(
        f"flan_t5_small: logits std {result.logits.std():.4f}, largest |logit| {result.logits.abs().max():.4f}, "
        f"loss {result.loss:.6f}, encoder output std {result.encoder_last_hidden_state.std():.4f}"
    )
    batch = dict(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_input_ids, labels=labels)
    flan_t5_small_lora(directory, model, config, batch, result.logits)


def flan_t5_small_lora(directory, base, config, batch, base_logits):
    """The same model and batch with LoRA, whose factors come from the formula too. Adapts `base` in place."""
    model = get_peft_model(base, lora_config(r=4, lora_alpha=10)).eval()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in trainable.items():
            formula_name = file_key(name).removeprefix("base_model.model.")
            parameter.copy_(torch.from_numpy(formula_weight(formula_name, parameter.shape, config)))

    def run():
        model.zero_grad()
        result = model(**batch)
        result.loss.backward()
        return result, {f"grad.{file_key(name)}": p.grad.double() for name, p in trainable.items()}

    def norm(gradients):
        return math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))

    result, in_f32 = run()
    model.double()
    exact, gradients = run()
    write_tensors(
        directory / "lora_io.safetensors",
        dict(
            logits_every_16=result.logits[..., ::16],
            loss=result.loss.reshape(1),
            grad_norm=torch.tensor([norm(gradients)]),
        )
        | {name: gradient.float() for name, gradient in gradients.items()},
    )
    print(
        f"flan_t5_small with LoRA: {len(gradients)} gradients of norm {norm(gradients):.6f}, loss {result.loss:.6f}, "
        f"logits move by {(result.logits - base_logits).square().mean().sqrt():.3f} (rms), "
        f"at most {(result.logits - base_logits).abs().max():.3f}; PyTorch in f32 from f64: "
        f"logits {(result.logits - exact.logits).abs().max():.1e}, "
        f"loss {abs(result.loss / exact.loss - 1):.1e} relative, "
        f"gradients {norm({n: in_f32[n] - g for n, g in gradients.items()}) / norm(gradients):.1e} relative"
    )


# ----------------------------------------------------------------------------------------------------- parameter counts


def parameter_counts(out):
    counts = {}
    for name, r in (("flan_t5_small", 32), ("flan_t5_base", 32), ("flan_t5_xxl", 16)):
        with torch.device("meta"):
            model = T5ForConditionalGeneration(T5Config.from_json_file(out / name / "config.json"))
            # The checkpoints hold a head of their own, which transformers 5 learns only from the file.
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
            base = sum(p.numel() for p in model.parameters())
            model = get_peft_model(model, lora_config(r=r, lora_alpha=r))
        trainable, total = model.get_nb_trainable_parameters()
        assert total == base + trainable
        counts[name] = dict(r=r, target_modules=["q", "v"], base=base, trainable=trainable, all=total)
    write_json(out / "parameter_counts.json", counts)


# ----------------------------------------------------------------------------------------------------------------- main


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if int(transformers.__version__.split(".")[0]) < 5:
        sys.exit(f"make_goldens.py needs transformers 5, found {transformers.__version__}")
    out = Path(sys.argv[1]).resolve()
    for name in GIVEN:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if out != HERE:
            shutil.copyfile(HERE / name, out / name)
    for name in BASES:
        base_io(out, name)
        base_generation(out, name)
        lora_io(out, name)
    config_of_version_5(out)
    lora_variants(out)
    trajectories(out)
    lr_schedules(out)
    parameter_counts(out)
    flan_t5_small(out)


if __name__ == "__main__":
    main()
