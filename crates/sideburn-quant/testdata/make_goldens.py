"""Numbers of bitsandbytes 0.50.2 on the CPU, for the tests of this crate.

    pip install torch==2.15.0 bitsandbytes==0.50.2 safetensors==0.8.0
    OMP_NUM_THREADS=1 python make_goldens.py goldens.safetensors

Weights are random numbers, from a seed that follows from their shape. `QTYPE.SHAPE.KIND.bsN.{dq|nodq}.*` is `quantize_4bit` of
the weight `SHAPE.KIND`; `linear4bit.state_dict.*` is what a layer saves; `int8.*` is LLM.int8() with thresholds 0 and 6;
`blockwise8.*` is `quantize_blockwise` of 1,000 numbers.
"""
import sys

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
tensors = {name + "_code": F.get_4bit_type(name, device="cpu") for name in ("nf4", "fp4")}
tensors["dynamic_map"] = F.create_dynamic_map(True)


def put(name, tensor):
    tensors[name] = tensor.detach().clone().contiguous()


for shape, kind in (((64, 64), "plain"), ((16, 64), "zeros"), ((33, 40), "plain"), ((7, 13), "plain"), ((96, 128), "outlier")):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0] * 1000 + shape[1])) * 0.05
    if kind == "outlier":
        weight[0, 0], weight[-1, -1] = 3.0, -2.5
    if kind == "zeros":
        weight[0] = 0.0
    put(f"{shape[0]}x{shape[1]}.{kind}", weight)
    for quant_type in ("nf4", "fp4"):
        for block in (64,) if quant_type == "fp4" else (64, 128):
            for double in (False, True):
                name = f"{quant_type}.{shape[0]}x{shape[1]}.{kind}.bs{block}.{'dq' if double else 'nodq'}"
                codes, state = F.quantize_4bit(weight, blocksize=block, quant_type=quant_type, compress_statistics=double)
                put(name + ".packed", codes.view(-1))
                put(name + ".absmax", state.absmax)
                if double:
                    put(name + ".nested_absmax", state.state2.absmax)
                    put(name + ".nested_offset", state.offset.reshape(1))
                if block == 64 and double:
                    put(name + ".dequant", F.dequantize_4bit(codes, state))

generator = torch.Generator().manual_seed(5)
weight, bias = torch.randn(96, 128, generator=generator) * 0.05, torch.randn(96, generator=generator)
layer = bnb.nn.Linear4bit(128, 96, bias=True, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4")
layer.load_state_dict({"weight": weight, "bias": bias})
put("linear4bit.weight", weight)
for name, tensor in layer.to("cpu").state_dict().items():
    if name != "bias":
        put("linear4bit.state_dict." + name, tensor)

generator = torch.Generator().manual_seed(6)
weight, x = torch.randn(96, 128, generator=generator) * 0.05, torch.randn(10, 128, generator=generator)
x[2, 17], x[5, 90] = 9.0, -7.5
put("int8.W", weight)
put("int8.X", x)
for threshold in (0.0, 6.0):
    for name, tensor in (("W", weight), ("X", x)):
        codes, absmax, columns = F.int8_vectorwise_quant(tensor.half(), threshold=threshold)
        put(f"int8.{name}.thr{threshold}.q", codes)
        put(f"int8.{name}.thr{threshold}.absmax", absmax)
        if columns is not None:
            put(f"int8.{name}.thr{threshold}.outlier_cols", columns)
    layer = bnb.nn.Linear8bitLt(128, 96, bias=False, has_fp16_weights=False, threshold=threshold)
    layer.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu").eval()
    put(f"int8.linear8bitlt.thr{threshold}.y", layer(x))
put("int8.W_dequant", F.int8_vectorwise_dequant(tensors["int8.W.thr0.0.q"], tensors["int8.W.thr0.0.absmax"]))

x = torch.randn(1000, generator=torch.Generator().manual_seed(8))
put("blockwise8.x", x)
for block in (256, 4096):
    codes, state = F.quantize_blockwise(x, blocksize=block)
    put(f"blockwise8.bs{block}.q", codes)
    put(f"blockwise8.bs{block}.absmax", state.absmax)
    put(f"blockwise8.bs{block}.dequant", F.dequantize_blockwise(codes, state))

save_file(tensors, sys.argv[1])
