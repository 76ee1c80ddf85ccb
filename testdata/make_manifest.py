"""Writes OUT/manifest.json: what made each golden of OUT, how near Sideburn must come to it, and where it is not followed.

    python make_manifest.py OUT

The tests read it, so that a new golden is tested as soon as it stands there. Needs nothing but Python.
"""

import json
import re
import sys
from pathlib import Path

TORCH = {"torch": "2.15.0", "python": "3.11"}
TRANSFORMERS = {"transformers": "5.23.0", "peft": "0.21.2", "safetensors": "0.8.0", "numpy": "2.4.6", **TORCH}
MAKERS = {
    "make_base.py": {"transformers": "4.57.6", **TORCH},
    "make_goldens.py": TRANSFORMERS,
    "make_adapter_goldens.py": TRANSFORMERS,
    "make_family.py": {"transformers": "5.24.0", **TORCH},
    "make_falcon.py": TRANSFORMERS,
    "make_generation_goldens.py": {"transformers": "4.57.6 and 4.52.4", **TORCH},
    "make_quant.py": {**TRANSFORMERS, "bitsandbytes": "0.50.2"},
    "make_optimizers.py": {**TRANSFORMERS, "transformers": "5.24.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"},
    "make_torch_files.py": {"safetensors": "0.8.0", **TORCH},
    "make_torch_model.py": {"transformers": "4.52.4", **TORCH},
    # Sideburn itself, held against peft by check_adapter_with_peft.py.
    "SIDEBURN_EXPORT": {"peft": "0.21.2"},
    # A few lines of peft, which README.md describes.
    "peft": {"transformers": "5.24.0", "peft": "0.21.2"},
}

# Where peft is not followed; README.md says why.
EXCEPTIONS = {
    "adapters/lora_shared_embedding": {"kind": "on_embedding"},
    "adapters/relu_tied__lora_shared_embedding": {"kind": "on_embedding"},
    "adapters/trainable_tokens": {"kind": "in_untied_head", "tokens": [41, 161, 221]},
    "adapters/lora_trainable_tokens": {"kind": "in_untied_head", "tokens": [41, 161, 221]},
    "adapters/p_tuning": {"kind": "network"},
    "adapters/p_tuning_lstm": {"kind": "network"},
    "adapters/prefix_tuning_proj": {"kind": "network"},
}

# Adapters that cannot be merged, and a part of the reason that Sideburn gives.
NOT_MERGED = {
    "adapters/lora_lora_bias": "no bias",
    "adapters/relu_tied__lora_modules_to_save_lm_head": "no output head of its own",
}
NO_WEIGHTS = ("prompt_tuning", "p_tuning", "prefix_tuning")

# At 16 times the learning rate PyTorch's own losses in f32 are 1.8e-4 from those in f64.
TOLERANCES = {"trajectory/t5_gated_untied__lora_plus": 5e-4}
TOLERANCE = 1e-4


def folders(out, group):
    return sorted(path for path in (out / group).iterdir() if path.is_dir())


def base_of(name):
    return "t5_relu_tied" if name.startswith("relu_tied__") else "t5_gated_untied"


def adapter(out, path):
    name = path.name
    golden = {"maker": "make_adapter_goldens.py", "tolerance": TOLERANCE}
    if (path / "adapter_config.json").exists():
        golden["base"] = base_of(name)
        if name.removeprefix("relu_tied__").startswith(NO_WEIGHTS):
            golden["not_merged"] = "its tokens are no weights"
    key = f"adapters/{name}"
    if key in NOT_MERGED:
        golden["not_merged"] = NOT_MERGED[key]
    if key in EXCEPTIONS:
        golden["exception"] = EXCEPTIONS[key]
    return key, golden


def falcon_adapter(path):
    base, method = path.name.split("__")
    golden = {"maker": "make_falcon.py", "tolerance": TOLERANCE, "base": f"falcon/{base}"}
    if method.startswith(NO_WEIGHTS):
        golden["not_merged"] = "its tokens are no weights"
    if method == "lora_embedding":
        golden["exception"] = {"kind": "on_embedding"}
    return f"falcon/adapters/{path.name}", golden


def trajectory(path):
    key = f"trajectory/{path.name}"
    base, method = path.name.split("__")
    maker = "make_goldens.py" if method in ("full", "lora") or method.startswith("lora_") else "make_adapter_goldens.py"
    if method in ("lora_rslora", "lora_dora"):
        maker = "make_adapter_goldens.py"
    return key, {"maker": maker, "base": base, "tolerance": TOLERANCES.get(key, TOLERANCE)}


def goldens(out):
    of_goldens = {"maker": "make_goldens.py", "tolerance": TOLERANCE}
    for name in ("t5_gated_untied", "t5_relu_tied"):
        yield name, {"maker": "make_base.py", "tolerance": TOLERANCE}
        yield f"lora/{name}", {**of_goldens, "base": name}
    yield "lora/variants", {**of_goldens, "base": "t5_gated_untied"}
    for path in folders(out, "adapters"):
        yield adapter(out, path)
    for path in folders(out, "family"):
        yield f"family/{path.name}", {"maker": "make_family.py", "tolerance": TOLERANCE}
    for path in folders(out, "quant"):
        # Of the spread of the logits.
        yield f"quant/{path.name}", {"maker": "make_quant.py", "base": "t5_gated_untied", "tolerance": 2e-4}
    for path in folders(out, "falcon/quant"):
        base = "falcon/" + re.split("_(?:nf4|fp4|int8)", path.name)[0]
        yield f"falcon/quant/{path.name}", {"maker": "make_quant.py", "base": base, "tolerance": 2e-4}
    # Of the largest element.
    yield "loftq", {"maker": "make_quant.py", "base": "t5_gated_untied", "tolerance": TOLERANCE}
    for path in folders(out, "trajectory"):
        yield trajectory(path)
    for name in ("flan_t5_base", "flan_t5_small", "flan_t5_xxl"):
        yield name, of_goldens
    for name in ("lr_schedules.json", "parameter_counts.json"):
        yield name, {"maker": "make_goldens.py", "tolerance": 1e-12 if name.startswith("lr") else 0}
    for path in folders(out, "falcon"):
        if (path / "model.safetensors").exists():
            yield f"falcon/{path.name}", {"maker": "make_falcon.py", "tolerance": TOLERANCE}
    for path in folders(out, "falcon/adapters"):
        yield falcon_adapter(path)
    for path in folders(out, "falcon/trajectory"):
        base = f"falcon/{path.name.split('__')[0]}"
        yield f"falcon/trajectory/{path.name}", {"maker": "make_falcon.py", "base": base, "tolerance": TOLERANCE}
    yield "generation", {"maker": "make_generation_goldens.py", "tolerance": TOLERANCE}
    yield "optimizers", {"maker": "make_optimizers.py", "tolerance": 1e-5}
    yield "torch", {"maker": "make_torch_files.py", "tolerance": 0}
    yield "torch_model", {"maker": "make_torch_model.py", "tolerance": 0}
    yield "embed_tokens", {"maker": "peft", "tolerance": TOLERANCE}
    yield "exported", {"maker": "SIDEBURN_EXPORT", "tolerance": TOLERANCE}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    manifest = {"makers": MAKERS, "goldens": dict(sorted(goldens(out)))}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
