"""Makes the reference numbers of `generation/` with transformers 4:

    OMP_NUM_THREADS=1 python make_generation_goldens.py OUT     # with transformers 4.57.6
    OMP_NUM_THREADS=1 python make_generation_goldens.py OUT     # and with 4.52.4, which still has groups and contrastive search

Each run writes the cases that its release has. Every prompt is a batch of its own, without padding, since what looks at the
prompt (`encoder_repetition_penalty`) sees padding too. `eos_token_id` names tokens that are often written, so that rows end.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from make_goldens import BASES, HERE, formula_weight, inputs, t5_shapes, write_json, write_tensors
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, T5ForConditionalGeneration

OLD = transformers.__version__.startswith("4.52")

# Fields that change the scores of a step, each by itself and in pairs. Sampling's own come with `do_sample`.
PROCESSORS = dict(
    sequence_bias=[[[5], 2.5], [[12, 20], -3.0], [[41], -1.5]],
    encoder_repetition_penalty=1.4,
    repetition_penalty=1.3,
    no_repeat_ngram_size=2,
    encoder_no_repeat_ngram_size=2,
    bad_words_ids=[[7], [12, 20], [3, 4, 5]],
    min_length=10,
    min_new_tokens=9,
    forced_eos_token_id=[2],
    remove_invalid_values=True,
    exponential_decay_length_penalty=[3, 1.2],
    suppress_tokens=[3, 9, 30],
    begin_suppress_tokens=[8, 11],
    temperature=0.7,
    top_k=12,
    top_p=0.8,
    min_p=0.05,
    typical_p=0.7,
    epsilon_cutoff=0.02,
    eta_cutoff=0.03,
    renormalize_logits=True,
)
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")

EOS = [1, 157, 204, 90]
SINGLE = dict(
    greedy={},
    greedy_eos=dict(eos_token_id=EOS),
    repetition_penalty=dict(repetition_penalty=1.3),
    encoder_repetition_penalty=dict(encoder_repetition_penalty=2.0),
    no_repeat_ngram_size=dict(no_repeat_ngram_size=2),
    encoder_no_repeat_ngram_size=dict(encoder_no_repeat_ngram_size=1),
    min_new_tokens=dict(min_new_tokens=10, eos_token_id=EOS),
    min_length=dict(min_length=6, eos_token_id=EOS),
    max_length=dict(max_length=9, max_new_tokens=None),
    forced_bos=dict(forced_bos_token_id=77),
    forced_eos=dict(forced_eos_token_id=1),
    suppress_tokens=dict(suppress_tokens=[3, 5, 7, 9, 11, 157]),
    begin_suppress_tokens=dict(begin_suppress_tokens=[157, 213, 90, 26]),
    bad_words_ids=dict(bad_words_ids=[[157], [213, 204]]),
    sequence_bias=dict(sequence_bias=[[[157], -4.0], [[33], 5.0], [[213, 204], -9.0]]),
    exponential_decay=dict(exponential_decay_length_penalty=[3, 1.5], eos_token_id=EOS),
    rep_ngram=dict(repetition_penalty=1.2, no_repeat_ngram_size=3),
)
BEAMS = {
    f"beam4_lp{length_penalty}_{early_stopping}": dict(
        num_beams=4, length_penalty=length_penalty, early_stopping=early_stopping, eos_token_id=EOS, num_return_sequences=2
    )
    for length_penalty in (0.6, 1.0, 2.0, -0.5)
    for early_stopping in (False, True, "never")
} | dict(
    beam4=dict(num_beams=4),
    beam4_returned=dict(num_beams=4, num_return_sequences=4),
    beam3_eos=dict(num_beams=3, num_return_sequences=3, eos_token_id=EOS),
    beam2_one_eos=dict(num_beams=2, eos_token_id=[157]),
    beam4_ngram_rep=dict(num_beams=4, no_repeat_ngram_size=3, repetition_penalty=1.3),
    beam4_min=dict(num_beams=4, min_new_tokens=8, eos_token_id=EOS),
    beam4_forced=dict(num_beams=4, forced_bos_token_id=77, forced_eos_token_id=1, eos_token_id=EOS),
    beam4_bias=dict(num_beams=4, sequence_bias=[[[157], -2.0], [[33], 1.0]], suppress_tokens=[90]),
)
MOVED = dict(
    groups2=dict(num_beams=4, num_beam_groups=2, diversity_penalty=1.0, num_return_sequences=4),
    groups4_eos=dict(num_beams=4, num_beam_groups=4, diversity_penalty=0.7, num_return_sequences=4, eos_token_id=EOS),
    groups3_eos=dict(num_beams=6, num_beam_groups=3, diversity_penalty=2.0, num_return_sequences=3, eos_token_id=EOS),
    groups2_early=dict(
        num_beams=4, num_beam_groups=2, diversity_penalty=1.5, early_stopping=True, num_return_sequences=2, eos_token_id=EOS
    ),
    groups2_never=dict(
        num_beams=4, num_beam_groups=2, diversity_penalty=1.5, early_stopping="never", length_penalty=2.0, eos_token_id=EOS
    ),
    groups2_rep=dict(num_beams=4, num_beam_groups=2, diversity_penalty=1.0, repetition_penalty=1.3, no_repeat_ngram_size=2),
    contrastive=dict(penalty_alpha=0.6, top_k=4),
    contrastive_eos=dict(penalty_alpha=0.8, top_k=6, eos_token_id=EOS),
    contrastive_rep=dict(penalty_alpha=0.6, top_k=4, repetition_penalty=1.2),
)


def generate(model, prompt, arguments):
    arguments = dict(max_new_tokens=24, do_sample=False) | arguments
    with torch.no_grad():
        result = model.generate(
            input_ids=prompt[None], return_dict_in_generate=True, output_scores=True, **arguments
        )
    case = dict(sequences=result.sequences.tolist())
    if arguments.get("num_beams", 1) > 1:
        case["sequences_scores"] = result.sequences_scores.tolist()
        if "num_beam_groups" not in arguments:
            transitions = model.compute_transition_scores(result.sequences, result.scores, result.beam_indices)
            case["transition_scores"] = transitions.tolist()
    else:
        best = [scores.topk(2, -1).values[0] for scores in result.scores]
        case["min_top2_gap"] = round(min(float(top[0] - top[1]) for top in best), 5)
    return case


def sequences(model, prompts, cases):
    return {
        name: dict(args=arguments, prompts=[generate(model, prompt, arguments) for prompt in prompts])
        for name, arguments in cases.items()
    }


def base(out, name):
    model = T5ForConditionalGeneration.from_pretrained(HERE / name, torch_dtype=torch.float32).eval()
    batch = inputs()
    prompts = [ids[mask == 1] for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
    write(out, name, model, prompts, MOVED if OLD else SINGLE | BEAMS)


def write(out, name, model, prompts, cases):
    write_json(out / "generation" / f"{name}{'_moved' if OLD else ''}.json", sequences(model, prompts, cases))


def flan_t5_small(out):
    config = json.loads((HERE / "flan_t5_small/config.json").read_text())
    weights = {name: formula_weight(name, shape, config) for name, shape in t5_shapes(config).items()}
    with tempfile.TemporaryDirectory() as checkpoint:
        (Path(checkpoint) / "config.json").write_text(json.dumps(config))
        tensors = {name: torch.from_numpy(w) for name, w in weights.items()}
        save_file(tensors, Path(checkpoint) / "model.safetensors", metadata=dict(format="pt"))
        model = T5ForConditionalGeneration.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    assert all(np.array_equal(model.state_dict()[name].numpy(), w) for name, w in weights.items())
    batch = load_file(HERE / "flan_t5_small/io.safetensors")
    prompts = [ids[mask == 1] for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
    cases = dict(
        greedy=dict(max_new_tokens=32),
        beam4=dict(num_beams=4, max_new_tokens=16),
        beam4_lp2=dict(num_beams=4, length_penalty=2.0, no_repeat_ngram_size=3, max_new_tokens=16),
    )
    moved = dict(
        groups2=dict(num_beams=4, num_beam_groups=2, diversity_penalty=1.0, max_new_tokens=16),
        contrastive=dict(penalty_alpha=0.6, top_k=4, max_new_tokens=16),
    )
    write(out, "flan_t5_small", model, prompts, moved if OLD else cases)


def processors(out):
    """What `generate` does to a matrix of scores, as its configuration asks for: one field, or two."""
    generator = torch.Generator().manual_seed(9)
    scores = torch.randn(3, 50, generator=generator) * 3
    written = torch.randint(0, 50, (3, 9), generator=generator)
    prompt = torch.randint(0, 50, (3, 7), generator=generator)
    written[:, 6:8] = written[:, 1:3]
    written[0, -1], prompt[0, 2:4] = 12, torch.tensor([12, 33])
    model = T5ForConditionalGeneration.from_pretrained(HERE / BASES[0])
    tensors, configs = dict(scores=scores, written=written, prompt=prompt), {}
    single = [{name: value} for name, value in PROCESSORS.items()]
    pairs = [dict(pair) for pair in itertools.combinations(PROCESSORS.items(), 2)]
    for fields in [*single, *pairs]:
        # One token is before the written ones; the next is the last that may be written.
        arguments = dict(max_length=10, eos_token_id=[2, 6], top_k=0, do_sample=any(name in SAMPLING for name in fields))
        arguments |= fields
        config = GenerationConfig(**arguments)
        config._eos_token_tensor = torch.tensor(config.eos_token_id)
        name = "+".join(fields)
        # At the first place: what is about the beginning alone.
        seen = written[:, :1] if "begin_suppress_tokens" in fields else written
        rules = model._get_logits_processor(
            config, input_ids_seq_length=1, encoder_input_ids=prompt, prefix_allowed_tokens_fn=None, logits_processor=[], device="cpu"
        )
        tensors[name], configs[name] = rules(seen, scores.clone()), dict(args=arguments, written=seen.shape[1])
    write_tensors(out / "generation/processors.safetensors", tensors)
    write_json(out / "generation/processors.json", configs)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for name in BASES:
        base(out, name)
    flan_t5_small(out)
    if not OLD:
        processors(out)
