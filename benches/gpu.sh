#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in one go of about ten minutes, and never more than SIDEBURN_GPU_SECONDS (840): time
# on a card is short.
#
#   benches/gpu.sh build cuda                   builds the programs and puts them into target/gpu/programs
#   benches/gpu.sh measure cuda [PYTHON]        measures; PYTHON has torch, transformers and peft, for their side
#   benches/gpu.sh rehearse wgpu [PYTHON]       the same with a tiny model, on whatever `wgpu` finds
#
# The backend is cuda, vulkan, wgpu or metal. To measure on another machine, take along target/gpu/programs, testdata and
# benches; the tests look for testdata where it was when they were built. Every command has a time limit, what it prints
# is in target/gpu/log.txt, each result is in target/gpu/results.jsonl as soon as there is one, and the tables at the end
# (what was measured, and what should have been) are made from these. `benches/gpu.sh table` makes them again.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

what=${1:-help} backend=${2:-cuda} python=${3:-}
out=${SIDEBURN_GPU_OUT:-target/gpu}
programs=$out/programs log=$out/log.txt results=$out/results.jsonl

say() { printf '[%4d s] %s\n' "$SECONDS" "$*" | tee -a "$log" >&2; }

# Builds one package's program or test and copies it. The names of packages decide which features Burn is built with.
build() {
    mkdir -p "$programs"
    local features="sideburn/$backend,sideburn-cli/$backend,sideburn-benches/$backend"
    # shellcheck disable=SC2016 # the program is Python's
    cargo build --release --locked -p sideburn -p sideburn-kernels -p sideburn-benches -p sideburn-cli \
        --features "$features" --test sideburn --test kernels --bench peer --bin sideburn \
        --message-format=json-render-diagnostics >"$out/build.json" || exit 1
    python3 - "$out/build.json" "$programs" <<'PYTHON' || exit 1
import json, shutil, sys
names = {("sideburn", "test"): "sideburn-tests", ("kernels", "test"): "kernels-tests", ("peer", "bench"): "peer",
         ("sideburn", "bin"): "sideburn"}
for line in open(sys.argv[1]):
    message = json.loads(line)
    target = message.get("target", {})
    name = names.get((target.get("name"), (target.get("kind") or [""])[0]))
    if message.get("executable") and name and not (name == "sideburn" and message["profile"]["test"]):
        shutil.copy(message["executable"], f"{sys.argv[2]}/{name}")
        print(name)
PYTHON
}

# case NAME SIDE LIMIT COMMAND...: runs a command that prints one JSON object last, and adds that to the results.
case_() {
    local name=$1 side=$2 limit=$3 left=$((whole - SECONDS)) started status output
    shift 3
    [ "$left" -gt 5 ] || { say "$name, $side: left out, the time is over"; return; }
    [ "$limit" -le "$left" ] || limit=$left
    say "$name, $side: $*"
    started=$(date +%s.%N)
    output=$(timeout --kill-after=5 "$limit" "$@" 2>>"$log")
    status=$?
    printf '%s\n' "$output" | tail -n 1 | cut -c 1-2000 >>"$log"
    [ "$status" = 0 ] || output=null
    printf '{"case": "%s", "side": "%s", "status": %d, "started_at": %s, "ended_at": %s, "record": %s}\n' \
        "$name" "$side" "$status" "$started" "$(date +%s.%N)" "$(printf '%s\n' "$output" | tail -n 1)" >>"$results"
    say "    exit status $status after $(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }') s"
}

# both NAME LIMIT FLAGS...: the same on both sides.
both() {
    local name=$1 limit=$2
    shift 2
    case_ "$name" ours "$limit" "$programs/peer" "${@:1:1}" --device "$backend" "${@:2}"
    theirs "$name" "$limit" "$@"
}

theirs() {
    local name=$1 limit=$2
    shift 2
    [ -z "$python" ] || case_ "$name" theirs "$limit" \
        "$python" benches/peer/hugging_face.py "${@:1:1}" --device "$their_device" "${@:2}"
}

# A directory with the configuration of a model, and a file of full rows.
model() {
    mkdir -p "$out/$1"
    cp "testdata/$2/config.json" "$out/$1/config.json"
}
samples() {
    python3 - "$1" "$2" "$3" "$vocabulary" >"$out/$1x$2+$3.jsonl" <<'PYTHON'
import json, random, sys
rows, source, target, vocabulary = map(int, sys.argv[1:])
draw = random.Random(1)
for _ in range(rows):
    print(json.dumps({"source": [draw.randrange(2, vocabulary) for _ in range(source)],
                      "target": [draw.randrange(2, vocabulary) for _ in range(target)]}))
PYTHON
}
rows() { echo "--samples $out/$1x$2+$3.jsonl --rows $1"; }

measure() {
    mkdir -p "$out"
    : >"$log"
    : >"$results"
    [ -x "$programs/peer" ] || { say "first: benches/gpu.sh build $backend"; exit 1; }
    { nvidia-smi; "$python" --version; git log -1 --format=%H; } >>"$log" 2>&1
    # Nothing is there that was compiled before: neither what CubeCL keeps nor what the driver does.
    local cache
    cache=$(realpath "$out")/cache
    rm -rf "$cache"
    mkdir -p "$cache"
    export XDG_CACHE_HOME=$cache CUDA_CACHE_PATH=$cache/cuda MESA_SHADER_CACHE_DIR=$cache/mesa
    local train="--method lora --lora-dropout 0.05" small_rows large_rows
    model small "$small"
    model base "$base"
    samples "${small_shape[@]}"
    samples "${large_shape[@]}"
    samples 1 "${large_shape[@]:1}"
    samples "${losses_shape[@]}"
    small_rows=$(rows "${small_shape[@]}") large_rows=$(rows "${large_shape[@]}")

    # shellcheck disable=SC2086 # flags are to be split into words
    {
        case_ "first step, nothing cached" ours 90 "$programs/peer" train --device "$backend" --model "$out/small" \
            $small_rows $train --reps 1
        case_ "first step, cached" ours 60 "$programs/peer" train --device "$backend" --model "$out/small" \
            $small_rows $train --reps 1
        theirs "first step, cached" 60 train --model "$out/small" $small_rows $train --reps 1
        case_ "devices" ours 60 "$programs/sideburn" devices "$backend" --json
        both "LoRA step, small, f32" 60 train --model "$out/small" $small_rows $train --warmup 3 --reps 10
        both "LoRA step, small, TF32" 60 train --model "$out/small" $small_rows $train --warmup 3 --reps 10 \
            --matmul-precision high
        both "LoRA step, base, $half" 90 train --model "$out/base" $large_rows $train --warmup 3 --reps 10 --dtype "$half"
        case_ "losses on the CPU" ours 60 "$programs/peer" train --device flex --model "$out/small" \
            $(rows "${losses_shape[@]}") $train --reps 20
        case_ "losses in $half" ours 60 "$programs/peer" train --device "$backend" --dtype "$half" --model "$out/small" \
            $(rows "${losses_shape[@]}") $train --reps 20
        local size batch
        for size in small base; do
            for batch in "${large_shape[0]}" 1; do
                both "decoding, $size, $half, batch $batch" 40 decode --model "$out/$size" --dtype "$half" \
                    $(rows "$batch" "${large_shape[@]:1}") --new-tokens "$new_tokens" --warmup 1 --reps 3
            done
        done
        both "products, $half" 30 products --dtype "$half" --tokens "$tokens" --width "$width"
        both "products, f32" 30 products --dtype f32 --tokens "$tokens" --width "$width"
        # The first time they compile what they need.
        local which
        for which in "" ", kept"; do
            tests "kernels' tests$which" kernels-tests gpu
            tests "models' tests$which" sideburn-tests gpu_parity half_precision
        done
        # What takes the longest comes last.
        theirs "LoRA step, base, $half, compiled" 150 train --model "$out/base" $large_rows $train --warmup 3 --reps 10 \
            --dtype "$half" --compile
    }
    say "done"
    table
}

# tests NAME PROGRAM FILTER...: whether tests pass.
tests() {
    local name=$1 program=$programs/$2
    shift 2
    # shellcheck disable=SC2016 # the inner shell expands it
    case_ "$name" ours "$test_limit" bash -c '"$@" 1>&2 && echo "{\"passed\": true}"' - "$program" --test-threads=1 "$@"
}

table() {
    python3 - "$results" "$half" "$out/base/config.json" "${large_shape[@]}" <<'PYTHON'
import json, os, statistics, sys
half, config, shape = sys.argv[2], sys.argv[3], [int(size) for size in sys.argv[4:]]
cases = {}
for line in open(sys.argv[1]):
    result = json.loads(line)
    cases.setdefault(result["case"], {})[result["side"]] = result

def cell(name, result):
    if result is None:
        return "not run", None
    record = result["record"]
    if record is None:
        return f"failed: status {result['status']}", None
    if name.startswith("first step"):
        seconds = record["first_step_at"] - result["started_at"]
        return f"{seconds:.2f} s ({record['first_step_at'] - record['ready_at']:.2f} s from the model on)", seconds
    if "products" in record:
        return "; ".join(f"{product['shape']}: {product['tflops']:.3g}" for product in record["products"]) + " TFLOP/s", None
    if "seconds" in record:
        seconds = statistics.median(record["seconds"]) / record["batches"]
        text = f"{1e3 * seconds:.4g} ms ({1e3 * min(record['seconds']) / record['batches']:.4g} at best)"
        text += f", {record['tokens'] / record['batches'] / seconds:,.0f} tokens/s"
        if record.get("device_mib"):
            text += f", {record['device_mib']:,.0f} MiB"
        if record.get("launches"):
            text += f", {record['launches']} launches"
        return text, seconds
    if "devices" in record:
        tests = [f"{d.get('card')}: {t['dtype']} {t['verdict']}" for d in record["devices"] for t in d.get("tests", [])]
        return "; ".join(tests) or json.dumps(record["devices"]), None
    return f"passed in {result['ended_at'] - result['started_at']:.0f} s", None

print("| what | Sideburn | Hugging Face | theirs / ours |\n|---|---|---|---|")
for name, sides in cases.items():
    (ours, own), (theirs, their) = (cell(name, sides.get(side)) for side in ("ours", "theirs"))
    print(f"| {name} | {ours} | {theirs} | {their / own:.2f} |" if own and their else f"| {name} | {ours} | {theirs} | |")

def record(name, side="ours"):
    return (cases.get(name, {}).get(side) or {}).get("record")

def seconds(name, side="ours"):
    result = cases.get(name, {}).get(side)
    return cell(name, result)[1] if result else None

def ratio(above, below):
    return above / below if above and below else None

def took(names):
    """Seconds that the tests of these names have taken, if they have passed."""
    results = [cases.get(name, {}).get("ours") for name in names]
    if not all(result and result["record"] for result in results):
        return None
    return sum(result["ended_at"] - result["started_at"] for result in results)

def step_flops(config, rows, source, target):
    """Operations of a training step of a frozen T5: a pass forward and the gradients of inputs, each with the products of
    all layers, and attention's two products forward and four back."""
    d, inner, ff = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"]
    gate = 3 if config.get("is_gated_act") or "gated" in config["feed_forward_proj"] else 2
    encoder, decoder = config["num_layers"], config.get("num_decoder_layers") or config["num_layers"]
    of_source = encoder * (4 * d * inner + gate * d * ff) + decoder * 2 * d * inner
    of_target = decoder * (6 * d * inner + gate * d * ff) + config["vocab_size"] * d
    pairs = encoder * source * source + decoder * (target * target + source * target)
    return rows * (2 * 2 * (source * of_source + target * of_target) + (2 + 4) * 2 * inner * pairs)

base, large = f"LoRA step, base, {half}", f"decoding, {{}}, {half}, batch {{}}"
memory = [(record(base, side) or {}).get("device_mib") for side in ("ours", "theirs")]
products = [product["tflops"] for side in ("ours", "theirs") for product in (record(f"products, {half}", side) or {}).get("products", [])]
peak = max(products) * 1e12 if products else None
flops = step_flops(json.load(open(config)), *shape) if os.path.exists(config) else None
losses = [(record(name) or {}).get("losses") for name in ("losses on the CPU", f"losses in {half}")]
worst = 100 * max(abs(one - other) / one for one, other in zip(*losses)) if all(losses) else None
tests = ["kernels' tests", "models' tests"]
bars = [
    ("first step, nothing cached, s", "<=", 15, seconds("first step, nothing cached")),
    ("first step, cached, s", "<=", 4, seconds("first step, cached")),
    ("tests pass, in seconds, nothing cached", "<=", float("inf"), took(tests)),
    ("tests pass, in seconds, cached", "<=", 60, took([name + ", kept" for name in tests])),
    (f"{base}: theirs / ours", ">=", 1.5, ratio(seconds(base, "theirs"), seconds(base))),
    (f"{base}: theirs, compiled / ours", ">=", 1.0, ratio(seconds(f"{base}, compiled", "theirs"), seconds(base))),
    (f"{base}: memory, ours / theirs", "<=", 0.5, ratio(*memory)),
    (f"{base}: % of the fastest product of either side", ">=", 35,
     100 * flops / seconds(base) / peak if flops and peak and seconds(base) else None),
    *((f"LoRA step, small, {kind}: theirs / ours", ">=", 1.2,
       ratio(*(seconds(f"LoRA step, small, {kind}", side) for side in ("theirs", "ours")))) for kind in ("f32", "TF32")),
    *((large.format(size, batch) + ": theirs / ours", ">=", bar,
       ratio(*(seconds(large.format(size, batch), side) for side in ("theirs", "ours"))))
      for size in ("small", "base") for batch, bar in ((1, 3), (shape[0], 2))),
    (f"losses of 20 steps in {half}: % off those in f32 on the CPU", "<=", 1, worst),
]
print("\n| what | bar | measured | |\n|---|---|---|---|")
for what, sign, bar, found in bars:
    verdict = "" if found is None else "met" if (found <= bar if sign == "<=" else found >= bar) else "not met"
    print(f"| {what} | {sign} {bar:g} | {'not measured' if found is None else f'{found:.3g}'} | {verdict} |")
PYTHON
}

whole=${SIDEBURN_GPU_SECONDS:-840}
their_device=cuda test_limit=150 half=bf16 new_tokens=64 vocabulary=32000 tokens=16384 width=768
small=flan_t5_small base=flan_t5_base
small_shape=(8 256 64) large_shape=(32 512 128) losses_shape=(4 64 16)
if [ "$what" = rehearse ]; then
    whole=${SIDEBURN_GPU_SECONDS:-3600}
    their_device=cpu test_limit=600 half=f16 new_tokens=8 vocabulary=100 tokens=256 width=64
    small=t5_gated_untied base=t5_gated_untied
    small_shape=(3 32 16) large_shape=(4 40 16) losses_shape=(2 16 8)
    what=measure
fi
case $what in
    build | measure | table) "$what" ;;
    *) sed -n '2,14p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
