"""Makes `family/`: one tiny model (random weights) of each kind of the T5 family, and what it computes.

    OMP_NUM_THREADS=1 python make_family.py OUT     # writes OUT/NAME/{config.json,model.safetensors,io.safetensors}

Needs transformers 5.24.0: up to 5.23 uMT5's outputs are always scaled. Needs no network. README.md says what every file is.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ARCHITECTURE = dict(
    vocab_size=48,
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=3,
    dropout_rate=0.0,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=12,
    pad_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=0,
)
T5, MT5, UMT5 = (
    (T5Config, T5ForConditionalGeneration),
    (MT5Config, MT5ForConditionalGeneration),
    (UMT5Config, UMT5ForConditionalGeneration),
)
# Classes, fields of the configuration, and whether the model has a head of its own.
MODELS = {
    "mt5": (MT5, dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False), True),
    "umt5": (UMT5, dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False), True),
    "umt5_scaled": (UMT5, dict(feed_forward_proj="gated-gelu", tie_word_embeddings=True), False),
    "ul2": (T5, dict(feed_forward_proj="gated-silu", tie_word_embeddings=False), True),
    "gated_erf": (T5, dict(feed_forward_proj="gated-gelu", dense_act_fn="gelu", is_gated_act=True), False),
    "gated_relu": (T5, dict(feed_forward_proj="relu", is_gated_act=True), False),
    "erf": (T5, dict(feed_forward_proj="gelu"), False),
    "tanh": (T5, dict(feed_forward_proj="gated-gelu", dense_act_fn="gelu_pytorch_tanh", is_gated_act=False), False),
    "swish": (T5, dict(feed_forward_proj="relu", dense_act_fn="swish"), False),
}
GRADIENT = "encoder.block.0.layer.0.SelfAttention.q.weight"


def inputs():
    """Three rows, padded on the right: inputs of 11, 6 and 3 tokens, labels of 5, 4 and 2."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 48, (3, 11), generator=generator)
    labels = torch.randint(2, 48, (3, 5), generator=generator)
    mask = torch.zeros(3, 11, dtype=torch.long)
    for row, (source, target) in enumerate(((11, 5), (6, 4), (3, 2))):
        mask[row, :source] = 1
        labels[row, target - 1] = 1
        labels[row, target:] = -100
    return dict(input_ids=ids * mask, attention_mask=mask, labels=labels)


@torch.no_grad()
def randomise(model):
    """Weights larger than their initialisation, so that every part of the model has a say."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        spread = 1.0 if "relative_attention_bias" in name else 0.3
        weight.copy_(torch.randn(weight.shape, generator=generator) * spread + (1.0 if "layer_norm" in name else 0.0))


def make(out, name):
    (config_class, model_class), fields, own_head = MODELS[name]
    config = config_class(**ARCHITECTURE, **fields)
    model = model_class(config).eval()
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    randomise(model)
    assert (model.lm_head.weight is model.shared.weight) != own_head
    path = out / name
    path.mkdir(parents=True, exist_ok=True)
    tensors = dict(model.named_parameters())
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    # As the hub has it: what was asked for, not what transformers 5 makes of it.
    written = dict(ARCHITECTURE, **fields, model_type=config.model_type, architectures=[model_class.__name__])
    (path / "config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")

    batch = inputs()
    again = model_class.from_pretrained(path, dtype=torch.float32).eval()
    result = again(**batch)
    result.loss.backward()
    with torch.no_grad():
        written = again.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=8,
            do_sample=False,
            num_beams=1,
        )
    io = batch | {
        "decoder_input_ids": again.prepare_decoder_input_ids_from_labels(batch["labels"]),
        "logits": result.logits,
        "loss": result.loss.reshape(1),
        f"grad.{GRADIENT}": dict(again.named_parameters())[GRADIENT].grad,
        "greedy_ids": written,
    }
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in io.items()}, path / "io.safetensors")
    print(f"{name}: {type(again).__name__}, loss {result.loss:.6f}, {written.tolist()}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if transformers.__version__ != "5.24.0":
        sys.exit(f"make_family.py needs transformers 5.24.0, found {transformers.__version__}")
    for name in MODELS:
        make(Path(sys.argv[1]), name)


if __name__ == "__main__":
    main()
