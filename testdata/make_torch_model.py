"""Makes torch_model/, t5_relu_tied in bf16 as `transformers` saved models before safetensors: two shards of `torch.save`, an index.

    python make_torch_model.py OUT/torch_model

Needs transformers 4.52, which still writes such files, and torch. Files of `torch.save` differ in no byte from run to run.
"""

import sys
from pathlib import Path

import torch
from transformers import T5ForConditionalGeneration

model = T5ForConditionalGeneration.from_pretrained(Path(__file__).parent / "t5_relu_tied", torch_dtype=torch.bfloat16)
model.save_pretrained(sys.argv[1], safe_serialization=False, max_shard_size="200KB")
(Path(sys.argv[1]) / "generation_config.json").unlink()
