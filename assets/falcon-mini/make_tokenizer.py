"""Writes tokenizer.json and tokenizer_config.json: byte-level BPE with Falcon's pipeline, learnt from ../chats.

Needs tokenizers 0.22 or newer. Run from anywhere; the output is the same each time.
"""

import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

here = pathlib.Path(__file__).parent
chats = json.loads((here / "../chats/train.json").read_text())
texts = [chat[part].replace("\r\n", "\n") for chat in chats for part in ("dialogue", "summary")]
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
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
trainer = trainers.BpeTrainer(
    vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
)
tokenizer.train_from_iterator(texts, trainer)
tokenizer.save(str(here / "tokenizer.json"))
config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "model_max_length": 2048}
(here / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
