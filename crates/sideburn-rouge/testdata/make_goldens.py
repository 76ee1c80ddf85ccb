"""Writes the goldens of sideburn-rouge with rouge_score 0.1.2; see README.md beside this file."""

import json
import pathlib

import nltk
import numpy as np
from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer, scoring, tokenize

HERE = pathlib.Path(__file__).resolve().parent
STANDARD = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
RANDOM = ["rouge1", "rouge2", "rouge3", "rougeL", "rougeLsum"]
PAIRS = 10_000
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


class SplitMix64:
    """Integers only, so that tests/parity/random_pairs.rs makes the same texts."""

    def __init__(self, seed):
        self.state = seed

    def below(self, bound):
        self.state = (self.state + GOLDEN) & MASK
        return (mix(self.state) * bound) >> 64


# ---- Pieces of text -------------------------------------------------------------------------------------------------

COMMON = """
the a an and or but if of to in on at by for with from as is are was were be been has have had do does did not no yes
he she they it we you i his her their its our your my this that these those there here what which who whom whose when
where why how all each few more most other some such only own same so than too very can will just should now person
people man woman child children friend friends family mother father brother sister teacher student students school
university class lesson homework exam doctor nurse hospital medicine office boss manager company business meeting
meetings memo email message phone call calls calling called computer internet website ticket tickets train bus taxi
airport flight hotel room rooms restaurant waiter menu dinner lunch breakfast coffee tea water food price prices money
bank account credit card shop shopping clothes shirt shoes dress size color car driver driving driven traffic road
street city country weather rain raining rained snow sunny holiday vacation birthday party present music concert film
movie game games football player winning book books reading newspaper news story stories job jobs interview salary
apartment house kitchen garden neighbor police thief robbery accident insurance problem problems question answer help
helps helped suggest suggests suggested recommends asks asked tells told thinks agrees agreed decides decided explains
explained complains complained invites invited orders ordered buys bought pays paid likes liked loves wants wanted needs
""".split()

TRICKY = """
sky skies dying lying tying dies lies ties died lied tied flies cries cried spied spies news inning innings outing
outings canning cannings howe proceed exceed succeed proceeds proceeding exceeding succeeded feed agreed freed bleed
greed heed need seed weed speed indeed breed steed decreed refereed guaranteed sing king ring thing bring string being
doing going seeing eyeing dyeing singeing hopping hoping hopped hoped tanning falling hissing fizzed failing filing
controlling controlled rolling rolled sized troubled conflated bled shred red bed enjoy enjoyed enjoying enjoyment say
says saying by fly try spy toy toys syzygy yyyy yyyyed happy happily happiness relational conditional rational valency
hesitancy digitizer comfortably radically differently vilely analogously organization predication operator feudalism
decisiveness hopefulness callousness formality sensitivity sensibility fully joyfully hopefully geology theology
analogy apology biology logic logically triplicate formative formalize electricity electrical hopeful goodness revival
allowance inference airliner gyroscopic adjustable defensible irritant replacement adjustment dependent adoption
decision homologous communism activate angularity effective bowdlerize probate rate cease roll ness less ious ally
alliance ally totally finally basically really specifically especially usually skis caresses ponies caress cats gas
this his thus bus buses analysis basis dress stress access process processes bias biased 1ed 22nd 1990s 3rd 007 2ed
11ing b2b x86 aaa aaaa ied ying ing eed sses ation ional ement ble bling ating izing ssing lling zzing axing fixes
ow ox owed boxed oxed yes eyes aged used using user users abed abbey abing obing eded edging inged inginging
""".split()

UNICODE = [
    "\u0130stanbul", "\u0130", "xx\u0130ed", "ba\u0130ing", "\u212aelvin", "\u212a", "100\u212a", "wor\u212aing",
    "caf\u00e9", "na\u00efve", "Z\u00fcrich", "\u00c5ngstr\u00f6m", "\u212bngstrom", "stra\u00dfe", "STRASSE",
    "\u1e9eeta", "\ufb01nding", "\u00b2nd", "\u0661\u0662", "\uff21\uff22\uff43", "\u2460", "\u039f\u0394\u039f\u03a3",
    "a\u03a3", "\u03a3b", "e\u0301te\u0301", "i\u0307", "I\u0307stanbul", "k\u0327ing", "n\u0303o", "\u0131rmak",
    "\u6771\u4eac", "\u6771\u4eactower", "\u304b\u306a", "\ud55c\uad6d\uc5b4", "\u4f60\u597d world",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "ok\U0001f44d\U0001f3fdok", "\U0001d41aed", "\ufe0f",
    "\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u0410a",
    "\u017fing", "\u01c5x", "\u2126hm", "re\u00adading", "zero\u200bwidth", "\ufeffbom", "nul\u0000byte", "\u00aaa",
]

PUNCTUATED = [
    "#Person1#", "#Person2#", "#person1#'s", "##Person2#", "Ms. Dawson", "Mr.", "hasn't", "it's", "they're", "O'Neil",
    "well-known", "3.14", "1,000", "$20", "50%", "9:30", "a.m.", "U.S.A.", "e-mail", "and/or", "snake_case", "C++",
    "THE", "Running", "RUNNING", "DYING", "Skies", "iPhone", "...", "--", "?!", "'", '"quoted"', "(aside)", "<b>", "a",
    "I", "x", "", "-", "_", "\\", "@user", "http://example.org/a?b=c", "\t", "\x0b", "\x1c", "\x85", "\u2028",
]

SEPARATORS = [" ", " ", " ", " ", " ", " ", ", ", ". ", "", "-", "\n", "\n", "\n\n", ".\n", "\r\n", "\t", "\u00a0", "\u3000",
              " \n ", "\u2028"]


# ---- Random pairs ---------------------------------------------------------------------------------------------------

def piece(rng, palette):
    return palette[rng.below(len(palette))] + SEPARATORS[rng.below(len(SEPARATORS))]


def noise(rng):
    letters = []
    for _ in range(rng.below(60)):
        if rng.below(3) == 0:
            code = rng.below(0x110000 - 0x800)
            letters.append(chr(code + 0x800 if code >= 0xD800 else code))
        else:
            letters.append(chr(rng.below(128)))
    return letters


def random_pair(index, atoms):
    rng = SplitMix64(index)
    size = 1 + rng.below(40)
    palette = [atoms[rng.below(len(atoms))] for _ in range(size)]
    longest = [3, 40, 40, 40, 40, 60, 90, 120][rng.below(8)]
    reference = [piece(rng, palette) for _ in range(rng.below(longest))]
    if rng.below(16) == 0:
        reference = noise(rng)

    how = rng.below(16)
    prediction = []
    if how == 0:
        prediction = noise(rng)
    elif how < 6:
        prediction = [piece(rng, palette) for _ in range(rng.below(longest))]
    else:
        for part in reference:
            change = rng.below(10)
            if change == 0:
                continue
            if change == 1:
                part = piece(rng, palette)
            prediction.append(part)
            if change == 2:
                prediction.append(part)
            if change == 3 and len(prediction) > 1:
                prediction[-1], prediction[-2] = prediction[-2], prediction[-1]
        if how < 9 and prediction:
            cut = rng.below(len(prediction))
            prediction = prediction[cut:] + prediction[:cut]
    return "".join(reference), "".join(prediction)


def record(reference, prediction, scorers):
    lengths = [len(tokenize.tokenize(text, None)) for text in (reference, prediction)]
    hits = []
    for scorer in scorers:
        scores = scorer.score(reference, prediction)
        for name in RANDOM:
            n = int(name[5:]) if name[5:].isdigit() else 1
            of_reference, of_prediction = [max(length - n + 1, 1) for length in lengths]
            shared = round(scores[name].recall * of_reference)
            precision, recall = shared / of_prediction, shared / of_reference
            rebuilt = (precision, recall, scoring.fmeasure(precision, recall))
            assert rebuilt == tuple(scores[name]), (reference, prediction, name)
            hits.append(shared)
    return bytes(lengths + hits)


# ---- Dialogue summaries ---------------------------------------------------------------------------------------------

SUBJECTS = ["#Person1#", "#Person2#", "Ann", "Mr. Lee", "Ms. O'Neil", "Zo\u00e9", "Both of them", "The manager", "Her brother"]
VERBS = ["asks about", "is asking about", "complains about", "recommends", "suggested", "has been studying", "is buying",
         "decides on", "agreed on", "explains", "hasn't tried", "cries over", "would like", "worries about", "is tying up"]
OBJECTS = ["the train tickets", "two coffees", "a new apartment", "the company's memos", "public transportation",
           "shopping online", "the job interview", "flying to Z\u00fcrich", "innings in baseball", "a $20 refund", "the weather",
           "dying plants", "her daughter's homework", "the 9:30 meeting", "organizational skills"]
ENDS = ["", "", " because of the traffic jam", " to keep healthy", " after work", " and feels happy", " before the exam",
        " with #Person2#'s help", " even though it's raining", " at the restaurant", " on holidays"]


def summary(rng, facts):
    parts = [f"{s} {VERBS[rng.below(len(VERBS))] if rng.below(3) == 0 else v} {o}{ENDS[rng.below(len(ENDS))]}."
             for s, v, o in facts]
    if rng.below(4) == 0:
        parts.reverse()
    return ("\n" if rng.below(2) == 0 else " ").join(parts)


def dialogue(index):
    rng = SplitMix64(1_000_000 + index)
    pick = lambda words: words[rng.below(len(words))]
    facts = [(pick(SUBJECTS), pick(VERBS), pick(OBJECTS)) for _ in range(1 + rng.below(4))]
    references = [summary(rng, facts) for _ in range([1, 1, 1, 2, 3][rng.below(5)])]
    retold = [(s, v, pick(OBJECTS)) if rng.below(3) == 0 else (s, v, o) for s, v, o in facts]
    return references, summary(rng, retold)


def bootstrap(rows, seed, samples, confidence):
    """What `bootstrap` of sideburn-eval must give: rouge_score's formulas over our draws."""
    means = np.zeros((samples, rows.shape[1]))
    for resample in range(samples):
        key = mix(mix((seed + GOLDEN) & MASK) ^ mix(((resample + 1) * GOLDEN) & MASK))
        draws = [(mix((key + (place + 1) * GOLDEN) & MASK) * len(rows)) >> 64 for place in range(len(rows))]
        means[resample] = np.mean(rows[draws], axis=0)
    tail = (1 - confidence) / 2
    return np.percentile(means, 100 * np.array([tail, 0.5, 1 - tail]), axis=0).tolist()


# ---- Stems ----------------------------------------------------------------------------------------------------------

ROOTS = """happ run hop tr relat condit operat formal hope sens activ creat organ digit comfort analog commun adjust
depend adopt probat contr roll agre fee pla enj cr fl th str vietnam geo theo electr good allow gyroscop irrit replac
angular bowdler ceas fizz hiss tann fail fil siz troubl conflat plaster motor b yy ya ay oy sky wax fix box ow tow
a e st sts aa ee oo bb 1 12 b2 university nation gener""".split()
SUFFIXES = """s es ies sses ss ed eed ied ing ying y ey ly al ally alli ational tional ency ancy izer bly ably ibly ently
ely ously ization ation ator alism iveness fulness ousness ality ivity bility fully ology logi icate ative alize icity
ical ful ness ance ence er ic able ible ant ement ment ent ion sion tion ou ism ate iti ous ive ize e ll lled lling
le ating bling izing ings eds alities allies""".split()


def stem_words():
    made = sorted({root + suffix for root in ROOTS for suffix in SUFFIXES})
    chosen = {word for index, word in enumerate(made) if mix(index) % 7 < 3}
    return sorted(word for word in chosen | set(COMMON) | set(TRICKY) if len(word) > 3)


# ---- Files ----------------------------------------------------------------------------------------------------------

def write(name, text):
    (HERE / name).write_text(text, encoding="ascii", newline="\n")


def main():
    assert [c for c in range(128, 0x110000) if any(x.isascii() and x.isalnum() for x in chr(c).lower())] == [0x130, 0x212A]
    atoms = COMMON + TRICKY + TRICKY + 4 * UNICODE + 4 * PUNCTUATED
    write("atoms.json", json.dumps({"atoms": atoms, "separators": SEPARATORS}, indent=0) + "\n")

    scorers = [rouge_scorer.RougeScorer(RANDOM, use_stemmer=stemmer) for stemmer in (False, True)]
    records = [record(*random_pair(index, atoms), scorers) for index in range(PAIRS)]
    (HERE / "random_pairs.bin").write_bytes(b"".join(records))

    modes = {"nostem": False, "stem": True}
    scorers = {mode: rouge_scorer.RougeScorer(STANDARD, use_stemmer=stemmer) for mode, stemmer in modes.items()}
    lines, rows = [], {mode: [] for mode in modes}
    for index in range(200):
        references, prediction = dialogue(index)
        line = {"references": references, "prediction": prediction}
        for mode, scorer in scorers.items():
            scores = scorer.score_multi(references, prediction)
            line[mode] = [list(scores[name]) for name in STANDARD]
            rows[mode].append(sum(line[mode], []))
        lines.append(json.dumps(line))
    write("dialogues.jsonl", "\n".join(lines) + "\n")

    config = {"seed": 7, "samples": 500, "confidence": 0.9}
    result = dict(config)
    for mode in modes:
        table = np.array(rows[mode])
        np.random.seed(0)
        aggregator = scoring.BootstrapAggregator(config["confidence"], 1000)
        for row in rows[mode]:
            aggregator.add_scores({name: scoring.Score(*row[3 * k:3 * k + 3]) for k, name in enumerate(STANDARD)})
        theirs = aggregator.aggregate()
        result[mode] = {
            "mean": np.mean(table, axis=0).tolist(),
            "intervals": bootstrap(table, **config),
            "intervals_of_rouge_score": [sum((list(getattr(theirs[name], end)) for name in STANDARD), [])
                                         for end in ("low", "mid", "high")],
        }
    write("bootstrap.json", json.dumps(result, indent=1) + "\n")

    target, prediction = [(HERE / "google" / name).read_text() for name in ("target.txt", "prediction.txt")]
    scores = {mode: [list(scorer.score(target, prediction)[name]) for name in STANDARD] for mode, scorer in scorers.items()}
    write("google.json", json.dumps(scores, indent=1) + "\n")

    stemmer = PorterStemmer()
    write("stems.txt", "".join(f"{word} {stemmer.stem(word)}\n" for word in stem_words()))
    print(f"NLTK {nltk.__version__}, numpy {np.__version__}")


if __name__ == "__main__":
    main()
