"""The steps of large_base.rs with transformers, peft and bitsandbytes, over the weights that it has written.

    python large_base.py DIR [--steps 3] [--rows 1] [--prompt 96] [--target 32] [--threads 2]

NF4 with double quantisation, LoRA of rank 16 on all four layers of a Falcon's block. Prints seconds, on the wall and of
processor time, and the peak of resident memory.
"""
import argparse
import resource
import time

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.falcon import modeling_falcon

parser = argparse.ArgumentParser()
parser.add_argument("dir")
for name, default in (("steps", 3), ("rows", 1), ("prompt", 96), ("target", 32), ("threads", 2)):
    parser.add_argument("--" + name, type=int, default=default)
args = parser.parse_args()
torch.set_num_threads(args.threads)
# transformers 5 quantises what is nn.Linear itself; this computes the same.
modeling_falcon.FalconLinear = torch.nn.Linear
config = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
)
clock = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(args.dir, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32)
print(f"loaded in {time.perf_counter() - clock:.1f} s")
model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
targets = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM"))
model.train()
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
ids = torch.randint(0, model.config.vocab_size, (args.rows, args.prompt + args.target), generator=torch.Generator().manual_seed(0))
labels = ids.clone()
labels[:, : args.prompt] = -100
for step in range(args.steps):
    clock, processor = time.perf_counter(), time.process_time()
    optimizer.zero_grad()
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    optimizer.step()
    taken, processor = time.perf_counter() - clock, time.process_time() - processor
    print(f"step {step}: loss {loss.item():.4f}, {taken:.2f} s ({processor:.2f} s of processor time)")
print(f"peak resident: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB")
