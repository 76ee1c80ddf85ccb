//! Sound files of each format, and the words they are made of.

use std::fs;
use std::path::Path;

use sideburn_quant::{Packed, QuantType, Quantization};

/// Files of the repository, by their paths in it.
fn files(paths: &[&str]) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    paths.iter().map(|path| fs::read(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))).collect()
}

pub(crate) const JSON: &[&[u8]] = &[
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"\"\"",
    b"-1",
    b"1e400",
    b"\\u0000",
    b"\\u001b[2J",
    b"\x1b[2J",
    b"\\ud800",
    b"\"../x\"",
    b"\"__metadata__\":",
    b"\"dtype\":\"F4\"",
    b"\"shape\":[",
    b"\"data_offsets\":[0,0]",
    b"\"weight_map\":{",
    b"\"m-1.safetensors\"",
    b"\"peft_type\":\"LOKR\"",
    b"\"target_modules\":",
    b"\"rank_pattern\":{\"(\":1}",
    b"\"(a+)+$\"",
    b"\"model_type\":\"t5\"",
    b"\"quant_method\":\"gptq\"",
    b"\"llm_int8_threshold\":1e40",
    b"\"blocksize\": 4096",
    b"\"summary\":",
    b"\"eos_token\":",
    b"\"eos_token_id\":",
    b",",
    b":",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\n",
    b"\xef\xbb\xbf",
];

pub(crate) const CSV: &[&[u8]] = &[
    b"\"",
    b"\"\"",
    b",",
    b"\n",
    b"\r\n",
    b"\r",
    b"id,dialogue,summary\n",
    b"id\tdialogue\tsummary\n",
    b";",
    b"\t",
    b"\\n",
    b"\\",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\0",
    b"\x1b[2J",
    b"_1",
];

pub(crate) const PICKLE: &[&[u8]] = &[
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"cos\nsystem\n",
    b"(",
    b"t",
    b"R",
    b"Q",
    b"u",
    b"e",
    b"a",
    b"s",
    b"b",
    b".",
    b")",
    b"}",
    b"]",
    b"N",
    b"\x88",
    b"\x85",
    b"\x86",
    b"\x87",
    b"q\x00",
    b"h\x00",
    b"r\xff\xff\xff\xff",
    b"K\x00",
    b"\x8a\x08",
    b"X\x01\x00\x00\x00",
    b"\x8c\x01a",
    b"\x94",
    b"\x93",
    b"J\xff\xff\xff\xff",
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"\x80\x02",
];

pub(crate) fn safetensors() -> Vec<Vec<u8>> {
    files(&["testdata/torch/expected.safetensors", "testdata/adapters/prompt_tuning/adapter_model.safetensors"])
}

pub(crate) fn index() -> Vec<Vec<u8>> {
    let map = br#"{"metadata": {"total_size": 8}, "weight_map": {"shared.weight": "m-1.safetensors", "m-1.safetensors": "m-1.safetensors", "b": "sub/m-2.safetensors"}}"#;
    let sound = br#"{"weight_map": {"shared.weight": "m-1.safetensors", "m-1.safetensors": "m-1.safetensors", "copy": "m-1.safetensors"}}"#;
    vec![map.to_vec(), sound.to_vec()]
}

pub(crate) fn torch() -> Vec<Vec<u8>> {
    files(
        &["dict.pt", "legacy.pt", "ordered_dict.pt", "protocol5.pt", "training.pt"]
            .map(|name| format!("testdata/torch/{name}"))
            .each_ref()
            .map(String::as_str),
    )
}

/// The pickles of two archives, and one assembled by hand: a tensor of four numbers.
pub(crate) fn pickle() -> Vec<Vec<u8>> {
    let archives = files(&["testdata/torch/dict.pt", "testdata/torch/protocol5.pt"]);
    let mut pickles: Vec<Vec<u8>> = archives.iter().filter_map(|archive| data_pkl(archive)).collect();
    assert_eq!(pickles.len(), 2, "both archives have a pickle");
    pickles.push(
        b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n\
        X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQK\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs."
            .to_vec(),
    );
    pickles
}

fn data_pkl(archive: &[u8]) -> Option<Vec<u8>> {
    let zip = rawzip::ZipArchive::from_slice(archive).ok()?;
    for entry in zip.entries() {
        let entry = entry.ok()?;
        if entry.file_path().as_bytes().ends_with(b"/data.pkl") {
            return Some(zip.get_entry(entry.wayfinder()).ok()?.data().to_vec());
        }
    }
    None
}

pub(crate) fn csv() -> Vec<Vec<u8>> {
    let one =
        "id,dialogue,summary,topic\ntrain_0,\"#Person1#: Hi, \"\"Ann\"\".\n#Person2#: Hello!\",They greet.,greeting\n";
    let three = "\u{feff}id,dialogue,summary\r\ntest_0_1,a: b,s1\r\ntest_0_2,a: b,s2\r\ntest_0_3,a: b,s3\r\n";
    let tabs = "ID\tDialogue\tSummary\na\tb: \\\"c\\\"\\nd\\\\\t\\N\ne\t\"f\tg\"\th\n";
    vec![one.into(), three.into(), tabs.into(), "id;dialogue;summary\n1;\"a;b\";c\n".into()]
}

pub(crate) fn jsonl() -> Vec<Vec<u8>> {
    let one = "{\"fname\":\"train_0\",\"dialogue\":\"#Person1#: Hi.\\n#Person2#: Hello.\",\"summary\":\"They greet.\",\"topic\":\"greeting\"}\n";
    let three = "{\"fname\":\"test_0\",\"dialogue\":\"a: b\",\"summary1\":\"x\",\"summary2\":\"y\",\"summary3\":\"z\"}\n\n{\"id\":\"test_1\",\"dialogue\":\"c\",\"summary\":\"d\"}";
    let array = "\u{feff}[\n {\"id\": 1, \"dialogue\": \"a ] \\\" [\", \"summary\": [\"s\", \"t\"], \"topic\": null},\n {\"id\": 2}\n]\n";
    vec![one.into(), three.into(), array.into()]
}

pub(crate) const TOML: &[&[u8]] = &[
    b"template = ",
    b"\"\"\"",
    b"'''",
    b"\\u001b",
    b"\\U0010FFFF",
    b"{dialogue}",
    b"{summary}",
    b"{{",
    b"}",
    b"[a.b]",
    b"1e400",
];

pub(crate) fn template() -> Vec<Vec<u8>> {
    vec![
        b"template = \"\"\"\nSummarize:\n{dialogue}\n\"\"\"\n".to_vec(),
        b"# For a decoder.\r\ntemplate = '### Input: {dialogue} {topic} ### Summary: {summary}'\r\n".to_vec(),
        "Fasse zusammen, gr\u{f6}\u{df}tenteils:\n{dialogue}\n".into(),
    ]
}

/// Two answers, one of which differs from any other.
pub(crate) const OTHER_VERDICT: [&str; 2] = [r#"{"score": 5}"#, r#"{"score": 1}"#];

pub(crate) fn verdict() -> Vec<Vec<u8>> {
    vec![
        br#"{"score": 4, "reason": "One fact is missing."}"#.to_vec(),
        b"<think>{\"score\": 1}</think>\n```json\n{\"reason\": \"All \\\"there\\\" }.\", \"score\": 5}\n```".to_vec(),
    ]
}

pub(crate) fn ratings() -> Vec<Vec<u8>> {
    let lines = [
        r#"{"id": "test_0", "system": "lora", "scores": {"relevance": 4, "fluency": 4.5}, "reasons": {"fluency": "a"}}"#,
        r#"{"id": "test_1", "scores": {}, "failed": {"relevance": "empty"}}"#,
        r#"{"system": "lora", "means": {"relevance": {"mean": 4.0, "n": 1}}}"#,
    ];
    vec![lines.join("\n").into()]
}

pub(crate) fn tokenizer() -> Vec<Vec<u8>> {
    files(&["crates/sideburn-data/testdata/tokenizer.json"])
}

pub(crate) fn tokenizer_config() -> Vec<Vec<u8>> {
    let names = r#"{"tokenizer_class": "ByT5Tokenizer", "eos_token": {"content": "</s>"}, "pad_token": "<pad>", "bos_token": null}"#;
    let ids = r#"{"tokenizer_class": "ByT5Tokenizer", "eos_token_id": [1, 2], "pad_token_id": 0, "decoder_start_token_id": 0, "is_encoder_decoder": true}"#;
    vec![names.into(), ids.into()]
}

#[cfg(feature = "models")]
pub(crate) fn adapter_config() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/adapters");
    let folders = fs::read_dir(folder).expect("reference adapters").flatten().map(|entry| entry.path());
    let mut configs: Vec<_> =
        folders.map(|path| path.join("adapter_config.json")).filter(|path| path.exists()).collect();
    configs.sort();
    configs.into_iter().map(|path| fs::read(path).expect("a file of the repository")).collect()
}

/// The shape of packed weights.
pub(crate) const PACKED_SHAPE: [usize; 2] = [3, 64];

/// Packed weights with their states.
pub(crate) fn quantized() -> Vec<Vec<u8>> {
    let values: Vec<f32> = (0..PACKED_SHAPE[0] * PACKED_SHAPE[1]).map(|x| (x as f32).sin()).collect();
    let plain = Quantization::FourBit { quant_type: QuantType::Fp4, block_size: 32, double_quant: false };
    let file = |quantization| {
        let packed = Packed::quantize("q.weight", &values, PACKED_SHAPE, quantization).expect("finite numbers");
        sideburn_weights::safetensors_bytes("seed", packed.stored("q.weight"), None).expect("names that differ")
    };
    [Quantization::NF4, plain, Quantization::INT8].map(file).into()
}

pub(crate) fn quantization_config() -> Vec<Vec<u8>> {
    files(&["testdata/quant/t5_nf4_dq/config.json", "testdata/quant/t5_int8/config.json"])
}

/// Every field of generation, and a file as the hub has it.
#[cfg(feature = "models")]
pub(crate) fn generation_config() -> Vec<Vec<u8>> {
    let all = serde_json::json!({
        "max_length": 64, "min_length": 3, "max_new_tokens": 20, "min_new_tokens": 2, "early_stopping": "never", "num_beams": 4,
        "num_beam_groups": 2, "diversity_penalty": 0.5, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1,
        "typical_p": 0.8, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "repetition_penalty": 1.2, "length_penalty": -1.0,
        "bad_words_ids": [[1, 2]], "sequence_bias": [[[3], 1.5]], "exponential_decay_length_penalty": [4, 1.1],
        "suppress_tokens": [7], "forced_eos_token_id": [1], "stop_strings": ["a"], "eos_token_id": [1, 2], "pad_token_id": 0,
    });
    let published =
        r#"{"_from_model_config": true, "eos_token_id": 1, "pad_token_id": 0, "transformers_version": "4.57.6"}"#;
    vec![all.to_string().into_bytes(), published.as_bytes().to_vec()]
}

#[cfg(feature = "models")]
pub(crate) fn model_config() -> Vec<Vec<u8>> {
    files(&["assets/t5-mini/config.json", "testdata/t5_relu_tied/config.json", "testdata/t5_gated_untied/config.json"])
}
