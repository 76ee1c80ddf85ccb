"""Does peft read an adapter that Sideburn wrote, and compute the same with it?

    python check_adapter_with_peft.py BASE_DIR ADAPTER_DIR IO [--tolerance 1e-4]

BASE_DIR is a T5 checkpoint, ADAPTER_DIR holds `adapter_config.json` and `adapter_model.safetensors`, and IO is a
safetensors file with `input_ids`, `attention_mask` and `decoder_input_ids`, and the `logits` that Sideburn computed
from them in eval mode. Prints the largest absolute difference to the logits that peft computes.
Exit status: 0 if it is within the tolerance, else 1.
"""

import argparse
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_dir")
    parser.add_argument("adapter_dir")
    parser.add_argument("io")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # peft only warns of keys that it misses in the file: here that is a failure.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("error", message=".*missing adapter keys.*")
    base = T5ForConditionalGeneration.from_pretrained(arguments.base_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, arguments.adapter_dir).eval()
    # It says nothing of keys in the file that it has no use for.
    stored = load_file(os.path.join(arguments.adapter_dir, "adapter_model.safetensors"))
    known = {name.replace(".default.", ".") for name, _ in model.named_parameters()}
    if unused := sorted(stored.keys() - known):
        print(f"peft has no use for {len(unused)} of {len(stored)} tensors of the adapter, such as {unused[0]}")
        return 1

    io = load_file(arguments.io)
    inputs = {name: io[name].long() for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    with torch.no_grad():
        logits = model(**inputs).logits
        with model.disable_adapter():
            effect = (model(**inputs).logits - logits).abs().max().item()
    if logits.shape != io["logits"].shape:
        print(f"logits have shape {tuple(io['logits'].shape)}, peft's have {tuple(logits.shape)}")
        return 1
    difference = (logits - io["logits"].float()).abs().max().item()
    # Written so that NaN fails.
    passed = difference <= arguments.tolerance
    print(
        f"{len(stored)} adapter tensors; largest difference {difference:.3e} (tolerance {arguments.tolerance:.1e}): "
        f"{'ok' if passed else 'FAILED'}; the adapter moves the logits by up to {effect:.3e}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
