"""Checks that adapters survive the way from Sideburn to peft and back:

    SIDEBURN_EXPORT=/tmp/adapters cargo test --release -p sideburn-t5 what_is_saved
    python check_round_trip_with_peft.py /tmp/adapters

Every adapter that Sideburn has written to the folder is loaded by peft on its base, without a warning about its keys, and saved
again. The tensors must be equal byte for byte, and what peft computes equal to the golden of the same name.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from make_goldens import HERE, inputs, load_base
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file


def tensors(directory):
    with safe_open(directory / "adapter_model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def check(directory):
    name = directory.name
    base = "t5_relu_tied" if name.startswith("relu_tied__") else "t5_gated_untied"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(load_base(HERE / base), directory).eval()
    keys = [text for text in (str(warning.message) for warning in caught) if "adapter keys" in text or "nexpected" in text]
    assert not keys, f"{name}: {keys}"
    batch = inputs()
    batch["decoder_input_ids"] = model.get_base_model().prepare_decoder_input_ids_from_labels(batch.pop("labels"))
    with torch.no_grad():
        logits = model(**batch).logits
    difference = (logits - load_file(HERE / "adapters" / name / "io.safetensors")["logits"]).abs().max()
    assert difference <= 1e-4, f"{name}: logits differ by {difference:.1e}"
    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        before, after = tensors(directory), tensors(Path(again))
    assert before.keys() == after.keys(), f"{name}: {before.keys() ^ after.keys()}"
    for key, tensor in before.items():
        same = tensor.dtype == after[key].dtype and tensor.numpy().tobytes() == after[key].numpy().tobytes()
        assert same, f"{name}: {key} has changed"
    print(f"{name}: {len(before)} tensors are equal, logits differ by {difference:.1e}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    directories = sorted(path.parent for path in Path(sys.argv[1]).glob("*/adapter_config.json"))
    for directory in directories:
        check(directory)
    print(f"{len(directories)} adapters survive")


if __name__ == "__main__":
    main()
