"""Makes the files of `torch.save` in torch/, and the same tensors as safetensors:

    python make_torch_files.py OUT        # writes OUT/*.pt, OUT/expected.safetensors, OUT/lora_rslora.bin, OUT/uniform.safetensors

Needs torch and safetensors. README.md says what every file is.
"""

import math
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def tensors():
    """Every dtype that is read, and every way in which a tensor can lie in a storage."""
    matrix = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    signed = torch.tensor([-2, 0, 1, 100])
    return {
        "f32": matrix,
        "f16": matrix[0].half(),
        "bf16": matrix[0].bfloat16(),
        "f64": matrix[0].double() / 3,
        "i64": signed * 2**40,
        "i32": signed.int(),
        "i16": signed.short(),
        "i8": signed.char(),
        "u8": torch.tensor([0, 1, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.tensor([0.5, -1.5])),
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 4),
        "view.tied": matrix,
        "view.transposed": matrix.T,
        "view.permuted": matrix.reshape(2, 2, 6).permute(2, 0, 1),
        "view.row": matrix[2],
        "view.strided": matrix[1:, 1::2],
        "view.column": matrix[:, 5:],
        "view.none": matrix[4:],
        "view.expanded": torch.tensor([[2.5], [3.5]]).expand(2, 3),
    }


def state_dict():
    state = OrderedDict(tensors())
    # As torch.nn.Module.state_dict has it: an attribute, which the pickle sets with BUILD.
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


def swap_bytes(source, target):
    """Rewrites an archive as a big-endian machine would have written it."""
    sizes = {t.untyped_storage().data_ptr(): t.element_size() for t in torch.load(source, mmap=True).values()}
    order = dict(enumerate(sizes.values()))  # storages are numbered as they come
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            root, name = entry.filename.split("/", 1)
            if name == "byteorder":
                data = b"big"
            elif name.startswith("data/"):
                size = order[int(name.removeprefix("data/"))]
                data = b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))
            new.writestr(zipfile.ZipInfo(entry.filename), data)


def check(path):
    loaded = torch.load(path, weights_only=False)  # our own file; weights_only knows protocol 2 alone
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), (path, name)


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    state = state_dict()
    torch.save(state, out / "ordered_dict.pt")
    torch.save(dict(state), out / "dict.pt", _disable_byteorder_record=True)
    torch.save(state, out / "protocol5.pt", pickle_protocol=5)
    torch.save(state, out / "legacy.pt", _use_new_zipfile_serialization=False)
    swap_bytes(out / "ordered_dict.pt", out / "big_endian.pt")
    for path in sorted(out.glob("*.pt")):
        check(path)
    save_file({name: t.detach().clone().contiguous() for name, t in state.items()}, out / "expected.safetensors")

    # What is not a state dict of tensors.
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(2, 1), out / "module.pt")
    torch.save({"epoch": 3, "model": {"w": torch.ones(1)}, "w": torch.ones(1)}, out / "training.pt")
    torch.save({"w": torch.ones(1, dtype=torch.complex64)}, out / "complex.pt")

    # An adapter as older releases of peft saved it.
    adapter = Path(__file__).parent / "adapters/lora_rslora/adapter_model.safetensors"
    torch.save(load_file(adapter), out / "lora_rslora.bin")

    # What torch.Generator gives, to the bit: uniform numbers as peft draws the matrices of VeRA, of which the second goes on
    # where the first ends. The generator makes 624 numbers at a time, and reads 32 bits of its seed.
    drawn = {}
    for key in (0, 42, 2**32 - 1, 2**32 + 42):
        generator = torch.Generator().manual_seed(key)
        for name, shape in (("A", (3, 211)), ("B", (5, 3))):
            bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
            drawn[f"{key}.{name}"] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    assert all(torch.equal(drawn[f"{2**32 + 42}.{name}"], drawn[f"42.{name}"]) for name in "AB")
    save_file(drawn, out / "uniform.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
