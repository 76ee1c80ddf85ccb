"""Sentences by NLTK's Punkt, and ROUGE over them by rouge_score with split_summaries.

Usage: python make_punkt.py, with nltk 3.10.4 and rouge_score 0.1.2. The parameters are made up, in the form of NLTK's punkt_tab, so
that every rule has something to do: those of NLTK state no licence. Writes punkt/.
"""

import json
import pathlib
import random

import nltk
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
from rouge_score import rouge_scorer

HERE = pathlib.Path(__file__).parent / "punkt"
ABBREVIATIONS = ["dr", "mr", "p.m", "e.g", "u.s", "inc", "st", "no", "ä.b"]
COLLOCATIONS = [("##number##", "street"), ("j", "bach"), ("st", "paul")]
STARTERS = ["the", "he", "however"]
# 2, 4, 8: with a capital at the beginning, in the middle, anywhere; 16, 32, 64: without.
CONTEXTS = {"the": 2 + 32, "he": 2 + 32 + 4, "train": 32 + 16, "smith": 4, "however": 2 + 32, "york": 4 + 8, "tea": 2 + 64, "we": 16 + 2,
            "##number##": 64, "über": 2 + 32}
PIECES = ["Dr.", "Mr.", "p.m.", "e.g.", "U.S.", "Inc.", "St.", "No.", "Ä.B.", "J.", "Bach", "K.", "Smith", "The", "the", "He", "he",
          "train", "Train", "Tea", "tea", "We", "we", "York", "Über", "über", "However", "3.", "3.14", "-7,000.", ".5", "street", "Paul",
          "end.", "end!", "end?", "end?!", "end...", "...", ". . .", "--", "-", "(yes.)", "\"No!\"", "said.\"", "’tis.’", "“So.”",
          "x.)", "[a.]", "a.b.c", "well-inc.", "co-op.", "#Person1#:", "@me.", "word", "word,", "word;", ",", ":", ".", "!", "?", "«oui.»",
          "東京。", "e\u0301.", "x--y.", "(", ")", "'", "\"", "²."]
SPACES = [" "] * 12 + ["  ", "\n", "\n\n", "\t", "\u00a0", ""]


def main():
    params = PunktParameters()
    params.abbrev_types, params.sent_starters = set(ABBREVIATIONS), set(STARTERS)
    params.collocations = set(COLLOCATIONS)
    params.ortho_context.update(CONTEXTS)
    HERE.mkdir(exist_ok=True)
    (HERE / "abbrev_types.txt").write_text("".join(f"{word}\n" for word in ABBREVIATIONS))
    (HERE / "collocations.tab").write_text("".join(f"{a}\t{b}\n" for a, b in COLLOCATIONS))
    (HERE / "sent_starters.txt").write_text("".join(f"{word}\n" for word in STARTERS))
    (HERE / "ortho_context.tab").write_text("".join(f"{word}\t{context}\n" for word, context in CONTEXTS.items()))
    tokenizer = PunktSentenceTokenizer(params)
    nltk.sent_tokenize = tokenizer.tokenize
    draw = random.Random(0)
    text = lambda: "".join(draw.choice(PIECES) + draw.choice(SPACES) for _ in range(draw.randrange(0, 16)))
    scorer = rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=True, split_summaries=True)
    with open(HERE / "texts.jsonl", "w") as out:
        before = ""
        for _ in range(1000):
            now = text()
            score = scorer.score(before, now)["rougeLsum"]
            line = {"text": now, "sentences": tokenizer.tokenize(now), "rougeLsum": list(score)}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            before = now


main()
