"""Makes the reference numbers of peft's methods, adapters/ and their trajectories, with PyTorch and peft:

    OMP_NUM_THREADS=1 python make_adapter_goldens.py OUT

Reads the tiny checkpoints from the folder it lies in, and writes OUT/adapters and OUT/trajectory. Needs no network.
README.md says what every file is.
"""

import copy
import shutil
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

# Before transformers and peft: it keeps them off the network.
from make_goldens import (
    HERE,
    file_key,
    inputs,
    load_base,
    lora_config,
    save_adapter,
    train,
    training_batches,
    write_json,
    write_sorted_config,
    write_tensors,
)

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

UNTIED, TIED = "t5_gated_untied", "t5_relu_tied"

warnings.filterwarnings("ignore", category=UserWarning)
warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")


# -------------------------------------------------------------------------------------------------------------- configs

# Four of the 12 layers that ["q", "v"] names, to keep the files small.
FOUR_SITES = r"(encoder|decoder)\.block\.1\.layer\.0\.SelfAttention\.(q|v)"
ENCODER_V, DECODER_V = (f"{stack}.block.1.layer.0.SelfAttention.v" for stack in ("encoder", "decoder"))
TOKENS = [41, 161, 221]


def of(kind, **options):
    return kind(task_type="SEQ_2_SEQ_LM", **options)


def lora(**changes):
    return lora_config(**(dict(r=4, lora_alpha=8) | changes))


def lora_on_few(**changes):
    return lora(**(dict(target_modules=FOUR_SITES) | changes))


def adalora(**changes):
    options = dict(init_r=4, target_r=2, lora_alpha=8, total_step=20, tinit=2, tfinal=5, target_modules=FOUR_SITES)
    return of(AdaLoraConfig, **(options | changes))


def prompt(**changes):
    return of(PromptTuningConfig, num_virtual_tokens=5, **changes)


def p_tuning(**changes):
    return of(PromptEncoderConfig, num_virtual_tokens=5, **(dict(encoder_hidden_size=16) | changes))


def prefix(n=5, **changes):
    return of(PrefixTuningConfig, num_virtual_tokens=n, **changes)


# The config of every adapter, and the spread of its tensors: one number, or one for each part of a parameter's name.
ADAPTERS = dict(
    lora_rslora=(lora(use_rslora=True), 0.05),
    lora_dora=(lora(use_dora=True, target_modules=["q", "wo"]), 0.07),
    lora_rank_alpha_pattern=(
        lora(
            r=3,
            lora_alpha=6,
            rank_pattern={"encoder.*SelfAttention.q": 4, "EncDecAttention.v": 2},
            alpha_pattern={"encoder.*SelfAttention.q": 32},
        ),
        0.06,
    ),
    lora_exclude=(lora(exclude_modules=r".*encoder\.block\.0.*"), 0.08),
    lora_layers_to_transform=(lora(layers_to_transform=[1], layers_pattern="block"), 0.1),
    lora_lora_bias=(lora_on_few(lora_bias=True), 0.12),
    lora_modules_to_save_lm_head=(lora_on_few(modules_to_save=["lm_head"]), 0.12),
    lora_modules_to_save_final_ln=(lora_on_few(modules_to_save=["final_layer_norm"]), 0.12),
    lora_shared_embedding=(lora(target_modules=[DECODER_V, ENCODER_V, "shared"]), 0.12),
    lora_lm_head=(lora(target_modules=[ENCODER_V, "lm_head"]), 0.12),
    lora_trainable_tokens=(lora_on_few(trainable_token_indices=TOKENS), 0.12),
    prompt_tuning=(prompt(), 0.5),
    prompt_tuning_sub1=(prompt(num_transformer_submodules=1), 0.5),
    p_tuning=(p_tuning(), 0.2),
    p_tuning_lstm=(p_tuning(encoder_hidden_size=4, encoder_reparameterization_type="LSTM"), 0.5),
    prefix_tuning=(prefix(), 0.5),
    prefix_tuning_source_length=(prefix(12), 0.5),
    prefix_tuning_proj=(prefix(prefix_projection=True, encoder_hidden_size=16), 0.2),
    ia3_default=(of(IA3Config), 0.2),
    ia3_explicit=(of(IA3Config, target_modules=["q", "wi_0", "wi_1"], feedforward_modules=["wi_0"]), 0.2),
    adalora=(adalora(), {"lora_E": 1.0, "lora_": 0.12}),
    adalora_rank_pattern=(
        adalora(
            rank_pattern={
                f"{stack}.block.1.layer.0.SelfAttention.{site}.lora_E": kept
                for stack, site, kept in (
                    ("encoder", "q", [True, False, True, True]),
                    ("encoder", "v", [True, True, True, True]),
                    ("decoder", "q", [False, False, False, False]),
                    ("decoder", "v", [False, True, False, False]),
                )
            }
        ),
        {"lora_E": 1.0, "lora_": 0.15},
    ),
    loha=(of(LoHaConfig, r=3, alpha=6, target_modules=FOUR_SITES), 0.3),
    lokr=(of(LoKrConfig, r=4, alpha=8, target_modules=["v", "wo"]), 0.1),
    lokr_decomposed=(of(LoKrConfig, r=2, alpha=4, decompose_both=True, target_modules=["v", "wo"]), 0.25),
    vera=(of(VeraConfig, r=8, target_modules=["v", "wo"]), 0.4),
    vera_unsaved_projection=(
        of(VeraConfig, r=8, target_modules=["v", "wo"], save_projection=False, projection_prng_key=123456789),
        0.4,
    ),
    oft=(of(OFTConfig, oft_block_size=8, target_modules=["v", "wo"]), 0.05),
    oft_cayley=(of(OFTConfig, r=16, oft_block_size=0, use_cayley_neumann=False, target_modules=["v", "wo"]), 0.1),
    ln_tuning=(of(LNTuningConfig), 0.1),
    trainable_tokens=(of(TrainableTokensConfig, token_indices=TOKENS), 0.5),
)
# The same on the tied model, in relu_tied__NAME.
ON_TIED = (
    "lora_shared_embedding",
    "lora_modules_to_save_lm_head",
    "ia3_default",
    "prompt_tuning",
    "prefix_tuning",
    "trainable_tokens",
)
# A T5 has no biases, so that there is nowhere to merge one to.
UNMERGEABLE = ("lora_lora_bias",)
TRAJECTORIES = dict(
    lora_rslora=lora(use_rslora=True),
    lora_dora=lora(use_dora=True),
    prompt_tuning=prompt(),
    prefix_tuning=prefix(),
    prefix_tuning_proj=prefix(prefix_projection=True, encoder_hidden_size=16),
    p_tuning=p_tuning(),
    ia3=of(IA3Config),
    adalora=adalora(),
)


# -------------------------------------------------------------------------------------------------------------- helpers


def new_adapter(base, config, seed=11):
    torch.manual_seed(seed)
    model = get_peft_model(load_base(HERE / base), copy.deepcopy(config))
    model.peft_config["default"].base_model_name_or_path = f"base/{base}"
    return model.eval()


def load_adapter(base, directory, **options):
    return PeftModel.from_pretrained(load_base(HERE / base), directory, **options).eval()


def run(model, **options):
    with torch.no_grad():
        return model(**inputs(), **options)


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def trained(model):
    """What is trained, by its name in the adapter's file, or by its own where the file has something else."""
    tensors = {file_key(name): p for name, p in trainable(model).items()}
    if tensors.keys() == {"prompt_encoder.embedding.weight"}:
        return dict(prompt_embeddings=tensors["prompt_encoder.embedding.weight"])
    return tensors


def randomise(model, spread, seed=7):
    """Random numbers for all that is trained. What starts as a part of the base, or as ones, stays near that."""
    like_the_base = ("modules_to_save", "trainable_tokens_delta", "lora_magnitude_vector", "ia3_l", "ln_tuning_layers")
    spreads = spread if isinstance(spread, dict) else {"": spread}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            scale = next(scale for part, scale in spreads.items() if part in name)
            noise = scale * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter * (1 + noise) if any(part in name for part in like_the_base) else noise)


def distance(a, b):
    return float((a - b).abs().max())


# ------------------------------------------------------------------------------------------------------------- adapters


def adapter(directory, base, config, spread, can_merge=True):
    made = new_adapter(base, config)
    randomise(made, spread)
    save_adapter(made, directory)
    # Read back from the files, so that the numbers are those that a reader of the files must find. peft cannot go on
    # training prompts: their gradients come from the model that was saved.
    is_prompt = config.is_prompt_learning
    read = load_adapter(base, directory, is_trainable=not is_prompt)
    result = run(read)
    tensors = dict(logits=result.logits, loss=result.loss.reshape(1))
    if config.peft_type == "ADALORA":
        logits, labels = result.logits.flatten(0, 1), inputs()["labels"].flatten()
        tensors["cross_entropy"] = cross_entropy(logits, labels).reshape(1)

    if config.peft_type == "VERA" and not config.save_projection:
        drawn = {name: getattr(read.base_model, name)["default"] for name in ("vera_A", "vera_B")}
        tensors |= {f"drawn.base_model.{name}": tensor for name, tensor in drawn.items()}

    model = made if is_prompt else read
    assert distance(run(model).logits, result.logits) < (1e-4 if is_prompt else 1e-9)
    stored = load_file(directory / "adapter_model.safetensors").keys()
    tensors |= {f"param.{key}": p.clone() for key, p in trained(model).items() if key not in stored}
    # In f64: see lora_io in make_goldens.py.
    exact = model.double()(**inputs())
    exact.loss.backward()
    # PyTorch has none for a tensor that the loss does not depend on.
    gradients = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in trained(model).items()}
    tensors |= {f"grad.{key}": gradient.float() for key, gradient in gradients.items()}

    merging = "not merged"
    if can_merge and not is_prompt:
        merged = run(load_adapter(base, directory).merge_and_unload()).logits
        merging = f"merged {distance(merged, result.logits):.0e}"
        if distance(merged, result.logits) > 2e-4:
            tensors["merged_logits"] = merged
    write_tensors(directory / "io.safetensors", tensors)

    move = result.logits - run(load_base(HERE / base)).logits
    sizes = [float(gradient.norm()) for gradient in gradients.values()]
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    untrained = [] if is_prompt else sorted(stored - gradients.keys())
    print(
        f"{directory.name}: {sum(file.stat().st_size for file in directory.iterdir()) // 1000} kB, "
        f"logits move by {move.square().mean().sqrt():.2f} (rms), at most {move.abs().max():.2f}; "
        f"f32 from f64 {distance(result.logits, exact.logits):.0e}, {merging}; "
        f"gradients {min(sizes):.2g} to {max(sizes):.2g}" + (f"; not trained: {untrained}" if untrained else "")
    )


def adapters(out):
    for name, (config, spread) in ADAPTERS.items():
        adapter(out / name, UNTIED, config, spread, name not in UNMERGEABLE)
    for name in ON_TIED:
        adapter(out / f"relu_tied__{name}", TIED, *ADAPTERS[name])


def mixed_rows(out):
    """Every row of the batch with another adapter."""
    model = load_adapter(UNTIED, out / "lora_rslora", adapter_name="a")
    model.load_adapter(out / "lora_rank_alpha_pattern", adapter_name="b")
    logits = run(model, adapter_names=["a", "__base__", "b", "a"]).logits
    write_tensors(out / "mixed_rows" / "io.safetensors", dict(logits=logits))


# ---------------------------------------------------------------------------------------------------- weighted adapters

PARTS = dict(
    a=lora(target_modules=[ENCODER_V, DECODER_V]),
    b=lora(lora_alpha=12, target_modules=[DECODER_V, "decoder.block.0.layer.1.EncDecAttention.q"]),
    c=lora(r=2, lora_alpha=6, target_modules=[ENCODER_V, DECODER_V]),
)
COMBINATIONS = dict(
    linear=("ab", {}),
    cat=("ac", {}),
    svd=("ac", {}),
    ties=("ab", dict(density=0.5)),
    magnitude_prune=("ab", dict(density=0.5)),
)


@contextmanager
def svd_in_f64():
    """peft takes singular values in f32: the products of its factors are off by up to 1e-5, relatively."""
    svd = torch.linalg.svd
    torch.linalg.svd = lambda weight, **options: [part.float() for part in svd(weight.double(), **options)]
    try:
        yield
    finally:
        torch.linalg.svd = svd


def combined(out):
    directory = out / "combined"
    for seed, (name, config) in enumerate(PARTS.items()):
        model = new_adapter(UNTIED, config)
        randomise(model, 0.2, seed)
        save_adapter(model, directory / name)
    for method, (parts, options) in COMBINATIONS.items():
        first, *others = parts
        model = load_adapter(UNTIED, directory / first, adapter_name=first)
        for name in others:
            model.load_adapter(directory / name, adapter_name=name)
        model.add_weighted_adapter(list(parts), [0.7, 0.4], "weighted", combination_type=method, **options)
        model.set_adapter("weighted")
        with tempfile.TemporaryDirectory() as saved:
            model.save_pretrained(saved, selected_adapters=["weighted"])
            shutil.copytree(Path(saved) / "weighted", directory / method, dirs_exist_ok=True)
        write_sorted_config(directory / method / "adapter_config.json")
        logits = run(load_adapter(UNTIED, directory / method)).logits
        assert distance(run(model).logits, logits) < 1e-4
        write_tensors(directory / method / "io.safetensors", dict(logits=logits))
        if method == "svd":
            with svd_in_f64():
                model.add_weighted_adapter(list(parts), [0.7, 0.4], "exact", combination_type=method, **options)
            model.set_adapter("exact")
            write_tensors(directory / method / "exact.safetensors", dict(logits=run(model).logits))
        print(f"combined/{method}: logits move by at most {distance(logits, run(load_base(HERE / UNTIED)).logits):.2f}")


# ------------------------------------------------------------------------------------------------------ initialisations

INIT_SITES = ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.1.layer.2.DenseReluDense.wo"]


def initialisation(directory, method):
    config = lora(target_modules=INIT_SITES, init_lora_weights=method)
    model, tensors = new_adapter(UNTIED, config), {}
    for site in INIT_SITES:
        layer = model.base_model.model.get_submodule(site)
        tensors[f"{site}.residual"] = layer.base_layer.weight
        tensors[f"{site}.lora_A"] = layer.lora_A["default"].weight
        tensors[f"{site}.lora_B"] = layer.lora_B["default"].weight
    write_tensors(directory / "init.safetensors", tensors)
    return model


def initialisations(out):
    initialisation(out / "init" / "olora", "olora")
    directory = out / "init" / "pissa"
    model = initialisation(directory, "pissa")
    save_adapter(model, directory / "initial_adapter")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, directory / "changed_adapter")
    with tempfile.TemporaryDirectory() as copied:
        # peft rewrites the config there.
        initial = shutil.copytree(directory / "initial_adapter", Path(copied) / "initial_adapter")
        model.save_pretrained(directory / "converted_adapter", path_initial_model_for_weight_conversion=initial)
    (directory / "converted_adapter" / "README.md").unlink()
    write_sorted_config(directory / "converted_adapter" / "adapter_config.json")
    logits = run(load_adapter(UNTIED, directory / "changed_adapter")).logits
    assert distance(run(model).logits, logits) < 1e-4
    assert distance(run(load_adapter(UNTIED, directory / "converted_adapter")).logits, logits) < 1e-4
    write_tensors(directory / "io.safetensors", dict(logits=logits))
    with svd_in_f64():
        exact = run(load_adapter(UNTIED, directory / "changed_adapter")).logits
    write_tensors(directory / "exact.safetensors", dict(logits=exact))
    print(f"init/pissa: logits move by at most {distance(logits, run(load_base(HERE / UNTIED)).logits):.2f}")


# --------------------------------------------------------------------------------------------------------- trajectories


def trajectory(out, method, config):
    directory = out / f"{UNTIED}__{method}"
    model = new_adapter(UNTIED, config, seed=5)
    save_adapter(model, directory / "initial_adapter")
    stored = load_file(directory / "initial_adapter" / "adapter_model.safetensors").keys()
    if not trained(model).keys() <= stored:
        write_tensors(directory / "initial.safetensors", trained(model))
    record = dict(base=UNTIED, method=method, batches=f"{UNTIED}__lora/batches.safetensors")
    if config.peft_type == "ADALORA":
        ranks = []

        def allocate(step):
            model.base_model.update_and_allocate(step)
            pattern = model.peft_config["default"].rank_pattern
            ranks.append(config.init_r * 4 if pattern is None else sum(map(sum, pattern.values())))

        record |= train(model, training_batches(), after_step=allocate) | dict(ranks=ranks)
        save_adapter(model, directory / "final_adapter")
    else:
        record |= train(model, training_batches())
        final = trained(model)
        if not final.keys() <= stored:
            final["prompt_embeddings"] = model.get_prompt_embedding_to_save("default")
        write_tensors(directory / "final.safetensors", final)
    write_json(directory / "trajectory.json", record)
    print(f"{directory.name}: loss {record['losses'][0]:.4f} to {record['losses'][-1]:.4f}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1]).resolve()
    adapters(out / "adapters")
    mixed_rows(out / "adapters")
    combined(out / "adapters")
    initialisations(out / "adapters")
    for method, config in TRAJECTORIES.items():
        trajectory(out / "trajectory", method, config)


if __name__ == "__main__":
    main()
