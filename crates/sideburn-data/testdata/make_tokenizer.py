#!/usr/bin/env python3
"""Writes tokenizer.json: T5's kind of tokenizer (Unigram, Metaspace, </s> behind the text) with a toy vocabulary.

Printable ASCII characters and a few words. The file also asks for truncation and padding, as some published ones do,
which the crate must switch off. Run from anywhere; the output is the same each time.
"""

import json
import pathlib

SPECIAL = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
WORDS = ["▁Hello", "▁the", "▁Summar", "ize", "#Person", "▁", *(chr(code) for code in range(33, 127))]
EOS = {"SpecialToken": {"id": "</s>", "type_id": 0}}
METASPACE = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}

pieces = SPECIAL[:3] + WORDS
# A longer piece must beat the characters it is made of: the price of a piece does not grow with its length.
vocabulary = [[piece, 0.0 if piece in SPECIAL else -5.0] for piece in pieces]
special = [(pieces.index(token) if token in pieces else len(pieces), token) for token in SPECIAL]
tokenizer = {
    "version": "1.0",
    "truncation": {"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>",
    },
    "added_tokens": [
        {"id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for id, token in special
    ],
    "normalizer": None,
    "pre_tokenizer": METASPACE,
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, EOS],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, EOS, {"Sequence": {"id": "B", "type_id": 0}}, EOS],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    },
    "decoder": METASPACE,
    "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary},
}
path = pathlib.Path(__file__).with_name("tokenizer.json")
path.write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
