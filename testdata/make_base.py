"""Writes the two tiny T5 checkpoints (random weights) in the layout of the Hugging Face hub:

    python make_base.py OUT        # writes OUT/NAME/{config.json,model.safetensors}

Needs transformers 4.57.6: version 5 initialises T5 differently and writes another `config.json`
(`tie_word_embeddings` is always true there), so that it cannot make these files.
Everything else in this folder is made by make_goldens.py with transformers 5.
"""

import sys
from pathlib import Path

import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

torch.set_num_threads(1)

ARCHITECTURE = dict(
    vocab_size=256,
    d_model=64,
    d_kv=16,
    d_ff=128,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    dropout_rate=0.0,
    pad_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=0,
)
CHECKPOINTS = {
    # T5 1.1 and FLAN-T5: gated feed-forward, own output head, no output scaling.
    "t5_gated_untied": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    # T5 1.0: relu, output head shared with the embedding, outputs scaled by d_model ** -0.5.
    "t5_relu_tied": dict(feed_forward_proj="relu", tie_word_embeddings=True),
}


def inputs():
    """Four rows of 12, 9, 7 and 4 tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 256, (4, 12), generator=generator)
    mask = torch.zeros(4, 12, dtype=torch.long)
    for row, length in enumerate((12, 9, 7, 4)):
        mask[row, :length] = 1
    return ids * mask, mask


@torch.no_grad()
def scale_up(model):
    """Makes the weights larger than their initialisation, so that the output depends on the context."""
    for block in [*model.encoder.block, *model.decoder.block]:
        for layer in block.layer:
            layer.layer_norm.weight.mul_(1 + 0.1 * torch.randn(64))
            for name, weight in layer.named_parameters():
                if name.endswith("q.weight"):
                    weight.mul_(4.0)
                elif name.endswith(("wo.weight", "o.weight")):
                    weight.mul_(3.0)
                elif "relative_attention_bias" in name:
                    weight.mul_(4.0)
    if not model.config.tie_word_embeddings:
        model.lm_head.weight.mul_(0.5)
        return
    model.shared.weight.mul_(0.3)
    model.decoder.final_layer_norm.weight.mul_(12.0)
    for block in [*model.encoder.block, *model.decoder.block]:
        for layer in block.layer:
            for name, weight in layer.named_parameters():
                if name.endswith(("wo.weight", ".o.weight", ".v.weight")):
                    weight.mul_(1.5)


def most_varied(options):
    """Of 40 seeds, the model whose greedy output is the most varied, preferably with some but not all rows ended."""
    best_score, best_model = -1, None
    ids, mask = inputs()
    for seed in range(40):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(T5Config(**ARCHITECTURE, **options)).eval()
        scale_up(model)
        with torch.no_grad():
            rows = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=24, do_sample=False, num_beams=1
            ).tolist()
        ended = sum(1 in row for row in rows)
        score = sum(len(set(row)) for row in rows) + (20 if 1 <= ended <= 3 else 0)
        if score > best_score:
            best_score, best_model = score, model
    return best_model


def main():
    if not transformers.__version__.startswith("4."):
        sys.exit(f"make_base.py needs transformers 4.57.6, found {transformers.__version__}")
    out = Path(sys.argv[1])
    for name, options in CHECKPOINTS.items():
        most_varied(options).save_pretrained(out / name)
        (out / name / "generation_config.json").unlink()


if __name__ == "__main__":
    main()
