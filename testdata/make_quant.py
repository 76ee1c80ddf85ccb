"""Writes, below OUT, quant/NAME and falcon/quant/NAME for tiny models in 4 and 8 bits: the checkpoint as transformers saves it and
logits, for the T5s 20 steps of QLoRA, too; and loftq/, what peft's LoftQ makes of some layers.

    OMP_NUM_THREADS=1 python make_quant.py OUT [NAME ...]

Reads t5_gated_untied and falcon/ beside this script. Needs bitsandbytes on the CPU.
"""

import inspect
import json
import sys
from pathlib import Path

import bitsandbytes
import torch
from peft import LoftQConfig, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import layer
from peft.utils import loftq_utils
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig
from transformers.models.falcon import modeling_falcon

torch.set_num_threads(1)
# On a CPU with bfloat16 the weights would be packed anew, with bfloat16 scales, and so saved.
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
# transformers 5 quantises what is nn.Linear itself; this computes the same.
modeling_falcon.FalconLinear = torch.nn.Linear
HERE = Path(__file__).parent
BASE = HERE / "t5_gated_untied"
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
NF4_DQ = {**NF4, "bnb_4bit_use_double_quant": True}
INT8 = {"load_in_8bit": True}
T5S = {"t5_nf4_dq": NF4_DQ, "t5_nf4": {**NF4, "bnb_4bit_use_double_quant": False}, "t5_int8": INT8}
FP4 = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
FALCONS = {"mqa_nf4_dq": ("mqa", NF4_DQ), "new_gqa_fp4": ("new_gqa", FP4), "mqa_bias_int8": ("mqa_bias", INT8)}
io = load_file(BASE / "io.safetensors")
batch = {name: io[name] for name in ("input_ids", "attention_mask", "labels")}


def load(kind, base, config):
    config = BitsAndBytesConfig(**config)
    model = kind.from_pretrained(base, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32).eval()
    # What is saved names no path of one machine.
    model.name_or_path = model.config._name_or_path = str(base.relative_to(HERE))
    return model


def save(model, out):
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)


@torch.no_grad()
def firm(model, draw):
    """Inputs, of several draws, whose logits stay what they are when the embedding is changed by 1e-6 of its size, and these logits:
    no activation is so close to the middle between two integers that rounding decides."""
    embedding, generator = model.get_input_embeddings().weight, torch.Generator().manual_seed(17)
    before = embedding.clone()
    for seed in range(500):
        inputs = draw(torch.Generator().manual_seed(seed))
        logits, moved = model(**inputs).logits, 0.0
        for _ in range(30):
            embedding.copy_(before * (1 + 1e-6 * torch.randn(before.shape, generator=generator)))
            moved = max(moved, float((model(**inputs).logits - logits).abs().max()))
        embedding.copy_(before)
        if moved <= 2e-5 * float(logits.std()):
            print(f"inputs of seed {seed} are firm: {moved:.1e}")
            return {**{f"firm_{name}": ids for name, ids in inputs.items()}, "firm_logits": logits.float()}
    raise SystemExit("no inputs are firm")


def make_t5(name, config):
    out = Path(sys.argv[1]) / "quant" / name
    model = load(AutoModelForSeq2SeqLM, BASE, config)
    with torch.no_grad():
        output = model(**batch)
    save(model, out)
    numbers = {"logits": output.logits.float(), "loss": output.loss.reshape(1).float()}
    if config is INT8:
        with torch.no_grad():
            numbers["logits_in_training"] = model.train()(**batch).logits.float()
        model.eval()
        ids = lambda count, generator: torch.randint(2, model.config.vocab_size, (1, count), generator=generator)
        numbers |= firm(model, lambda generator: {"input_ids": ids(6, generator), "decoder_input_ids": ids(3, generator)})
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


def make_falcon(name, base, config):
    out = Path(sys.argv[1]) / "falcon/quant" / name
    model = load(AutoModelForCausalLM, HERE / "falcon" / base, config)
    save(model, out)
    ids = lambda generator: {"input_ids": torch.randint(2, 256, (1, 8), generator=generator)}
    save_file(firm(model, ids), out / "io.safetensors")


@torch.no_grad()
def make_loftq():
    """For bits, iterations and a site: what the base becomes, and `B A`; the scaling is 1. peft computes on a GPU alone; its source is
    run for the CPU."""
    source = inspect.getsource(loftq_utils.loftq_init).replace('"cuda"', '"cpu"')
    exec(source, vars(loftq_utils))
    layer.loftq_init = loftq_utils.loftq_init
    numbers = {}
    for bits, iterations in ((4, 1), (4, 3), (8, 1)):
        model = AutoModelForSeq2SeqLM.from_pretrained(BASE, dtype=torch.float32)
        loftq = LoftQConfig(loftq_bits=bits, loftq_iter=iterations)
        lora = LoraConfig(r=8, lora_alpha=8, target_modules=["q", "v"], init_lora_weights="loftq", loftq_config=loftq)
        model = get_peft_model(model, lora)
        for site in ("encoder.block.0.layer.0.SelfAttention.q", "decoder.block.1.layer.1.EncDecAttention.v"):
            linear = model.base_model.model.get_submodule(site)
            name = f"{bits}.{iterations}.{site}"
            numbers[f"{name}.base"] = linear.base_layer.weight.detach().clone()
            numbers[f"{name}.delta"] = linear.lora_B["default"].weight @ linear.lora_A["default"].weight
    out = Path(sys.argv[1]) / "loftq"
    out.mkdir(parents=True, exist_ok=True)
    save_file(numbers, out / "io.safetensors")


for name in sys.argv[2:] or [*T5S, *FALCONS, "loftq"]:
    if name in T5S:
        make_t5(name, T5S[name])
    elif name in FALCONS:
        make_falcon(name, *FALCONS[name])
    else:
        make_loftq()
