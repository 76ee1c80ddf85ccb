#!/usr/bin/env python3
"""Writes bpe/tokenizer.json and bpe/tokenizer_config.json: Falcon's kind of tokenizer (byte-level BPE) with a toy vocabulary,
and bpe/ids.json: what Hugging Face's tokenizers makes of some texts.

The pipeline (punctuation, bytes, digits in threes, nothing around a text) is that of tiiuae/falcon-7b; the merges are learnt
from the sentences below. Needs tokenizers 0.22 or newer. Run from anywhere; the output is the same each time.
"""

import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = [
    "Summarize the following conversation.",
    "Summary: Anna and Ben meet at the station at 5.",
    "Anna: Are we still on for dinner? Ben: Yes, at the new place.",
    "The train to the station is late again, and dinner is at 1930.",
]
TEXTS = [
    "",
    "Summary: Anna meets Ben.",
    " Anna and Ben",
    "the  station\n\n12345 ... 7",
    "naïve café 東京 🚂",
    "dinner<|endoftext|>Anna",
    ">>QUESTION<<Who? >>ANSWER<<Ben.",
]
SPECIAL = [">>QUESTION<<", ">>ANSWER<<", "<|endoftext|>"]

out = pathlib.Path(__file__).parent / "bpe"
out.mkdir(exist_ok=True)
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]
)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(
    vocab_size=320, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
)
tokenizer.train_from_iterator(SENTENCES, trainer)
tokenizer.save(str(out / "tokenizer.json"))
config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "model_max_length": 2048}
(out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
ids = [[text, tokenizer.encode(text).ids, tokenizer.decode(tokenizer.encode(text).ids)] for text in TEXTS]
(out / "ids.json").write_text(json.dumps(ids, indent=1, ensure_ascii=False) + "\n")
