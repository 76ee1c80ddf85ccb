"""Writes OUT/NAME for the tiny T5 in 4 and 8 bits: the checkpoint as transformers saves it, logits, and 20 steps of QLoRA.

    OMP_NUM_THREADS=1 python make_quant.py OUT

Reads t5_gated_untied beside this script. Needs bitsandbytes on the CPU.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig

torch.set_num_threads(1)
BASE = Path(__file__).parent / "t5_gated_untied"
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
CONFIGS = {
    "t5_nf4_dq": {**NF4, "bnb_4bit_use_double_quant": True},
    "t5_nf4": {**NF4, "bnb_4bit_use_double_quant": False},
    "t5_int8": {"load_in_8bit": True},
}
io = load_file(BASE / "io.safetensors")
batch = {name: io[name] for name in ("input_ids", "attention_mask", "labels")}

for name, config in CONFIGS.items():
    out = Path(sys.argv[1]) / name
    model = AutoModelForSeq2SeqLM.from_pretrained(
        BASE, quantization_config=BitsAndBytesConfig(**config), device_map={"": "cpu"}, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        output = model(**batch)
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    numbers = {"logits": output.logits.float(), "loss": output.loss.reshape(1).float()}
    if "load_in_8bit" in config:
        with torch.no_grad():
            numbers["logits_in_training"] = model.train()(**batch).logits.float()
        model.eval()
    save_file(numbers, out / "io.safetensors")

    torch.manual_seed(3)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    model = get_peft_model(model, lora)
    model.save_pretrained(out / "initial_adapter")
    (out / "initial_adapter" / "README.md").unlink(missing_ok=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    model.train()
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    (out / "trajectory.json").write_text(json.dumps({"losses": losses}, indent=1))
