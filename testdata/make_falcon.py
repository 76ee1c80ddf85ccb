"""Makes `falcon/`: tiny Falcons (random weights), adapters and runs of training, and what transformers and peft compute of them.

    OMP_NUM_THREADS=1 python make_falcon.py base OUT       # OUT/falcon/NAME/{config.json,generation_config.json,model.safetensors}
    OMP_NUM_THREADS=1 python make_falcon.py goldens OUT    # all else; reads the checkpoints in the folder it lies in

The first makes the CLASSIC models with transformers 4 and the others with 5, so that both forms of `config.json` are there.
Needs no network. README.md says what every file is.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import save_file
from transformers import FalconConfig, FalconForCausalLM

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

HERE = Path(__file__).resolve().parent
SHAPE = dict(
    vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
    bos_token_id=2, eos_token_id=1, pad_token_id=0, hidden_dropout=0.0, attention_dropout=0.0, alibi=False,
)  # fmt: skip
CLASSIC = {
    "mqa": dict(multi_query=True, parallel_attn=True, new_decoder_architecture=False, bias=False),
    "mqa_bias": dict(multi_query=True, parallel_attn=True, new_decoder_architecture=False, bias=True),
    "mha_seq": dict(multi_query=False, parallel_attn=False, new_decoder_architecture=False, bias=True),
    "new_gqa": dict(new_decoder_architecture=True, num_kv_heads=2, bias=False),
}
SMALL = dict(hidden_size=48, num_attention_heads=6)
OTHERS = {
    # Six heads: slopes that bfloat16, in which transformers multiplies them, does not hold.
    "alibi_seq": dict(SMALL, multi_query=False, parallel_attn=False, bias=True, alibi=True),
    "alibi_mqa": dict(SMALL, alibi=True, activation="gelu_pytorch_tanh", ffn_hidden_size=80),
    "one_norm": dict(
        SMALL, new_decoder_architecture=True, num_kv_heads=3, num_ln_in_parallel_attn=1, tie_word_embeddings=False,
        activation="relu", rope_parameters=dict(rope_type="default", rope_theta=500.0),
    ),  # fmt: skip
}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_tensors(path, tensors):
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)


def load(name, dtype=torch.float32):
    model = FalconForCausalLM.from_pretrained(HERE / "falcon" / name, dtype=dtype).eval()
    # What adapters name their base: no path of one machine.
    model.name_or_path = model.config._name_or_path = f"falcon/{name}"
    return model


# ----------------------------------------------------------------------------------------------------------------- base


@torch.no_grad()
def scale_up(model):
    """Makes the weights larger than their initialisation, so that the output depends on the context."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            weight.mul_(4.0 if "word_emb" in name else 8.0)
        elif name.endswith("bias"):
            weight.normal_(0, 0.05)
        else:
            weight.mul_(1 + 0.1 * torch.randn_like(weight))


def make_base(out):
    """Of several seeds the one whose greedy output is the most varied."""
    classic = transformers.__version__.startswith("4.")
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 256, (2, 8), generator=generator)
    for name, fields in (CLASSIC if classic else OTHERS).items():
        best = None
        for seed in range(15):
            torch.manual_seed(seed)
            model = FalconForCausalLM(FalconConfig(**{**SHAPE, **fields})).eval()
            scale_up(model)
            written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
            variety = sum(len(set(row.tolist())) for row in written)
            if best is None or variety > best[0]:
                best = (variety, model)
        best[1].save_pretrained(out / "falcon" / name)


# -------------------------------------------------------------------------------------------------------------- goldens


def inputs():
    """Three rows, padded on the left: 10, 7 and 4 tokens. No label is one that padding would have to foretell."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 256, (3, 10), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    mask[2, :6] = 0
    ids = ids * mask
    labels = ids.clone()
    labels[mask == 0] = -100
    labels[:, :4] = -100
    labels[2, :7] = -100
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


def packed(batch, rows):
    """Logits, loss and gradients of these rows, each alone and without padding: rows that peft pads differ."""
    lengths = batch["attention_mask"].sum(1).tolist()
    return [
        {name: tensor[row : row + 1, -length:] for name, tensor in batch.items()}
        for row, length in enumerate(lengths)
        if row in rows
    ]


def loss_of(model, batch):
    """The mean over all labels of the rows, each of which is run alone."""
    losses = []
    for row in packed(batch, range(3)):
        labels = row["labels"][0]
        logits = model(input_ids=row["input_ids"], attention_mask=row["attention_mask"]).logits[0]
        logits = logits[-len(labels) :]
        at = (labels != -100).nonzero()[:, 0]
        losses.append(torch.nn.functional.cross_entropy(logits[at - 1], labels[at], reduction="none"))
    return torch.cat(losses).mean()


def logits_of(model, batch):
    """The logits of every real token, row after row, each row run alone; without those of virtual tokens."""
    with torch.no_grad():
        rows = packed(batch, range(3))
        found = [model(input_ids=row["input_ids"], attention_mask=row["attention_mask"]).logits[0] for row in rows]
    return torch.cat([logits[-row["input_ids"].shape[1] :] for logits, row in zip(found, rows)])


def gradients(model, batch, rename=lambda name: name):
    """In f64, rounded to f32."""
    model = model.double()
    loss = loss_of(model, batch)
    loss.backward()
    named = {rename(name): weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {f"grad.{name}": gradient.float() for name, gradient in named.items()}


CASES = {"greedy": {}, "greedy_ngram2": dict(no_repeat_ngram_size=2)}


def generations(model, batch, cases=CASES):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    found = {}
    for case, options in cases.items():
        written = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=24, do_sample=False, num_beams=1,
            return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
        top = [scores.float().topk(2, -1).values for scores in written.scores]
        gap = min(float((two[..., 0] - two[..., 1]).min()) for two in top)
        sequences = written.sequences[:, ids.shape[1] :].tolist()
        found[case] = dict(sequences=sequences, min_top2_gap=round(gap, 5))
    return found


def make_bases(out, batch):
    for name in [*CLASSIC, *OTHERS]:
        folder = out / "falcon" / name
        folder.mkdir(parents=True, exist_ok=True)
        model = load(name)
        with torch.no_grad():
            padded = model(**batch)
        tensors = dict(batch, logits=padded.logits, loss=padded.loss.reshape(1))
        if name.startswith("alibi"):
            # Places that bfloat16 does not hold.
            row = torch.randint(2, 256, (1, 600), generator=torch.Generator().manual_seed(4))
            with torch.no_grad():
                tensors |= dict(long_input_ids=row, long_logits=model(row).logits[:, -3:])
        tensors |= gradients(load(name, torch.float64), batch)
        write_tensors(folder / "io.safetensors", tensors)
        write_json(folder / "generation.json", generations(load(name), batch))


def adapters():
    from peft import (
        IA3Config, LNTuningConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PrefixTuningConfig, PromptTuningConfig,
        TrainableTokensConfig, VeraConfig,
    )  # fmt: skip

    def of(kind, **options):
        return kind(task_type="CAUSAL_LM", **options)

    all_four = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]

    def lora(**changes):
        return of(LoraConfig, **{**dict(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=all_four), **changes})

    qkv = ["query_key_value"]
    return {
        "mqa__lora": lora(),
        "mqa__lora_default_targets": of(LoraConfig, r=4, lora_alpha=8),
        "mqa__lora_all_linear": lora(target_modules="all-linear"),
        "mqa__lora_dora": lora(use_dora=True),
        "mqa__lora_embedding": lora(target_modules=["word_embeddings", "dense"]),
        "mqa__loha": of(LoHaConfig, r=2, alpha=4, target_modules=qkv),
        "mqa__lokr": of(LoKrConfig, r=2, alpha=4, target_modules=qkv),
        "mqa__oft": of(OFTConfig, oft_block_size=8, target_modules=qkv),
        "mqa__vera": of(VeraConfig, r=4, target_modules=["dense"]),
        "mqa__ia3": of(IA3Config),
        "mqa__ln_tuning": of(LNTuningConfig),
        "mqa__trainable_tokens": of(TrainableTokensConfig, token_indices=[16, 61, 108], target_modules=["word_embeddings"]),
        "mqa__prompt_tuning": of(PromptTuningConfig, num_virtual_tokens=5),
        "mha_seq__prefix_tuning": of(PrefixTuningConfig, num_virtual_tokens=5),
        "mqa_bias__lora": lora(),
        "mqa_bias__lora_bias_all": lora(bias="all"),
        "mqa_bias__lora_bias_lora_only": lora(bias="lora_only"),
        "mqa_bias__lora_lora_bias": lora(lora_bias=True),
        "mha_seq__lora": lora(),
        "new_gqa__lora": lora(),
        "alibi_seq__lora": lora(),
    }


@torch.no_grad()
def randomise(model):
    """Numbers that are neutral for no method."""
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        noise = torch.randn(weight.shape, generator=generator)
        if "magnitude" in name or "ia3" in name or name.endswith("norm.weight") or "ln_f.weight" in name:
            weight.mul_(1 + 0.2 * noise)
        elif "prompt" in name:
            weight.copy_(0.5 * noise)
        elif "oft" in name:
            weight.copy_(0.3 * noise)
        elif name.endswith(".bias") and "lora" not in name:
            weight.add_(0.1 * noise)
        else:
            weight.copy_(0.12 * noise if "lora" in name else 0.2 * noise)


def file_key(name):
    """The name that a parameter has in `adapter_model.safetensors`."""
    name = name.replace(".default.", ".").removesuffix(".default")
    return name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")


def save_adapter(model, folder):
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    for field in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(field), list):
            config[field].sort()
    write_json(folder / "adapter_config.json", dict(sorted(config.items())))


def make_adapters(out, batch):
    from peft import PeftModel, get_peft_model
    from safetensors.torch import load_file

    for name, config in adapters().items():
        base, folder = name.split("__")[0], out / "falcon/adapters" / name
        torch.manual_seed(11)
        model = load(base)
        fresh = get_peft_model(model, config)
        randomise(fresh)
        save_adapter(fresh, folder)
        again = PeftModel.from_pretrained(load(base), folder).eval()
        tensors = dict(batch, logits=logits_of(again, batch))
        with torch.no_grad():
            tensors["loss"] = loss_of(again, batch).reshape(1)
        stored = load_file(folder / "adapter_model.safetensors")
        if config.is_prompt_learning:
            trainable = get_peft_model(load(base, torch.float64), config).eval()
            randomise(trainable)
        else:
            trainable = PeftModel.from_pretrained(load(base, torch.float64), folder, is_trainable=True).eval()
        found = gradients(trainable, batch, file_key)
        prompt = [key for key in found if "prompt_encoder" in key]
        if prompt:
            found["grad.prompt_embeddings"] = found.pop(prompt[0])
        tensors |= {key: gradient for key, gradient in found.items() if key.removeprefix("grad.") in stored}
        if not config.is_prompt_learning and not getattr(config, "lora_bias", False):
            merged = PeftModel.from_pretrained(load(base), folder).eval().merge_and_unload()
            distance = (logits_of(merged, batch) - tensors["logits"]).abs().max()
            if distance > 1e-3:
                tensors["merged_logits"] = logits_of(merged, batch)
            print(f"{name}: merging moves the logits by {distance:.1e}")
        write_tensors(folder / "io.safetensors", tensors)


def make_trajectories(out):
    from peft import LoraConfig, get_peft_model

    targets = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets)
    generator = torch.Generator().manual_seed(21)
    batches = []
    for _ in range(4):
        ids = torch.randint(2, 256, (3, 10), generator=generator)
        mask = torch.ones_like(ids)
        # Rows of 10, 8 and 5 tokens, the first three of which are the prompt; padded on the right.
        mask[1, 8:] = 0
        mask[2, 5:] = 0
        labels = (ids * mask).masked_fill(mask == 0, -100)
        labels[:, :3] = -100
        batches.append(dict(input_ids=ids * mask, attention_mask=mask, labels=labels))
    for name, config in (("mqa__lora", lora), ("new_gqa__lora", lora), ("mqa__full", None)):
        folder = out / "falcon/trajectory" / name
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(5)
        model = load(name.split("__")[0])
        if config is not None:
            model = get_peft_model(model, config)
            save_adapter(model, folder / "initial_adapter")
        model.train()
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        decay = [weight for name, weight in trained.items() if "norm" not in name and "ln_" not in name and "bias" not in name]
        rest = [weight for weight in trained.values() if all(weight is not other for other in decay)]
        groups = [dict(params=decay, weight_decay=0.01), dict(params=rest, weight_decay=0.0)]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-3)
        losses, norms = [], []
        for step in range(20):
            optimizer.zero_grad()
            loss = model(**batches[step % 4]).loss
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), float("inf"))))
            optimizer.step()
            losses.append(float(loss))
        write_json(folder / "trajectory.json", dict(losses=losses, grad_norms=norms, lrs=[1e-3] * 20, batches=None))
        stacked = {f"{key}.{index}": batch[key] for index, batch in enumerate(batches) for key in batch}
        write_tensors(folder / "batches.safetensors", stacked)
        if config is not None:
            write_tensors(folder / "final.safetensors", {file_key(key): weight for key, weight in trained.items()})


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("base", "goldens"):
        sys.exit(__doc__)
    out = Path(sys.argv[2])
    if sys.argv[1] == "base":
        return make_base(out)
    batch = inputs()
    make_bases(out, batch)
    make_adapters(out, batch)
    make_trajectories(out)


if __name__ == "__main__":
    main()
