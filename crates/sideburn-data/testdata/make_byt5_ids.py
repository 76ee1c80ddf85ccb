#!/usr/bin/env python3
"""Writes byt5_ids.json: what ByT5Tokenizer of transformers makes of some texts, and of ids that no text gives.

    python3 -m venv venv && venv/bin/pip install transformers==5.24.0
    venv/bin/python crates/sideburn-data/testdata/make_byt5_ids.py
"""

import json
import pathlib

from transformers import ByT5Tokenizer

TEXTS = [
    "", " ", "a", "Hello, world!", "#Person1#: Is it late?\n#Person2#: Yes.\r\n\ttab", "Grüße, naïve café", "你好，世界",
    "emoji 👩‍👩‍👧 🇩🇪", "\u0000\u0001\u007f\u0080\u00ff", "e\u0301 é", "end</s>", "end </s>", "</s>", "a</s>b",
    "a </s> b", "<pad>a", "a <pad> b", "<unk>", "a <unk> b", "<extra_id_0>", "a <extra_id_0> b <extra_id_124>",
    "<extra_id_125>", "<extra_id_7>x<extra_id_7>", "<extra_id_12", "</s", "<s>", "a</s></s>", "  two  blanks  ",
    "<extra_id_0></s><extra_id_1>", "a \n </s> \n b", "a\u001c</s>\u0085b", "a\u00a0</s>\u3000b", "a\u200b</s>",
    "<extra_id_00>", "<extra_id_+1>", "<extra_id_>", "\ufffd and 😀",
]
IDS = [
    [], [0], [1], [2], [100, 1], [198, 100], [231, 1], [230, 170, 163], [258, 100], [0, 100, 0, 101, 1, 102],
    [259, 100, 383], [384, 100], [3], [200, 100, 176, 1], [243, 162, 148, 100], [100, 2, 101], [198, 259, 172],
]
tokenizer = ByT5Tokenizer()
texts = [{"text": text, "ids": tokenizer(text).input_ids} for text in TEXTS]
decoded = []
for ids in IDS + [row["ids"] for row in texts]:
    known = [id for id in ids if id < len(tokenizer)]
    decoded.append({"ids": ids, "text": tokenizer.decode(known, skip_special_tokens=True)})
pad, eos, unk = tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
written = [json.dumps({"tokens": len(tokenizer), "pad": pad, "eos": eos, "unk": unk})[1:-1]]
for name, rows in [("texts", texts), ("decoded", decoded)]:
    written.append(f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]")
path = pathlib.Path(__file__).with_name("byt5_ids.json")
path.write_text("{\n" + ",\n".join(written) + "\n}\n", encoding="utf-8")
