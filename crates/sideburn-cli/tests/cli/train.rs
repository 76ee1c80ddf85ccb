//! `sideburn train`.

use std::process::{Output, Stdio};
use std::time::Duration;

use super::*;

/// Settings of a run that takes a moment.
const SHORT: [&str; 8] = [
    "subsample=count:24",
    "max_steps=6",
    "per_device_train_batch_size=2",
    "max_source_length=48",
    "max_target_length=12",
    "adapter.r=4",
    "adapter.lora_alpha=8",
    "save_steps=2",
];

fn train(set: &[&str], more: &[&std::ffi::OsStr]) -> Output {
    let set = set.iter().flat_map(|set| ["--set", set]);
    program().arg("train").args(set).args(more).output().unwrap()
}

fn short(more: &[&str], output: &Path) -> Run {
    let all: Vec<&str> = SHORT.iter().chain(more).copied().collect();
    told(train(&all, &["--output".as_ref(), output.as_os_str()]))
}

fn bytes(path: &Path, name: &str) -> Vec<u8> {
    let path = path.join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_settings_of_a_run_repeat_it() {
    let directory = tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
    let evaluated = [
        "eval_strategy=steps",
        "eval_steps=3",
        "predict_with_generate=true",
        "max_predict_samples=2",
        "generation.max_new_tokens=5",
        "report_to=[\"tensorboard\"]",
        "num_train_epochs=0.5",
        "max_steps=0",
    ];
    let run = short(&evaluated, &first);
    assert_eq!(run.code, 0, "{}", run.stderr);
    // 24 examples, 2 a step: 12 steps an epoch.
    assert_contains(&run.stdout, &["trainable params: ", "6 steps, loss ", "first/final"]);
    let log = String::from_utf8(bytes(&first, "training.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 8);
    assert_contains(&log, &["\"eval_perplexity\":", "\"eval_rougeLsum\":", "\"samples\":[{\"id\":\""]);
    let config = String::from_utf8(bytes(&first, "config.toml")).unwrap();
    assert_contains(&config, &["max_steps = 6\n", "[adapter]\n", "r = 4\n"]);
    assert!(!config.contains("num_train_epochs"), "{config}");
    assert!(bytes(&first, "events.out.tfevents").len() > 1000);
    let report = String::from_utf8(bytes(&first, "report.html")).unwrap();
    assert_contains(
        &report,
        &[">loss</text>", ">eval_rouge1</text>", ">tokens_per_second</text>", "<path class=\"line\" d=\"M"],
    );

    let again = told(
        program().args(args!["train", "--config", first.join("config.toml"), "--output", &second]).output().unwrap(),
    );
    assert_eq!(again.code, 0, "{}", again.stderr);
    for name in [
        "config.toml",
        "training.jsonl",
        "final/adapter_model.safetensors",
        "final/adapter_config.json",
        "best/adapter_model.safetensors",
        "checkpoint-6/optimizer.safetensors",
        "checkpoint-6/trainer_state.json",
    ] {
        assert_eq!(bytes(&first, name), bytes(&second, name), "{name}");
    }
    assert_contains(&error(args!["train", "--output", &first]), &["there is a run in it already"]);
    // It is read as any adapter.
    let inspected = json(0, args!["adapter", "inspect", first.join("final")]);
    assert_eq!(inspected["ranks"], json!([4]), "{inspected}");
    // Whatever is in a run directory stands in the page about it.
    let page = page();
    for entry in fs::read_dir(&first).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = if name.starts_with("checkpoint-") { "checkpoint-N".to_owned() } else { name };
        assert_contains(&page, &[&format!("\n{name}")]);
    }
    for entry in fs::read_dir(first.join("checkpoint-6")).unwrap() {
        assert_contains(&page, &[&format!("\n  {}", entry.unwrap().file_name().into_string().unwrap())]);
    }
}

#[test]
fn the_size_of_batches_that_was_found_is_kept() {
    let directory = tempdir().unwrap();
    let [found, told] = ["found", "told"].map(|name| directory.path().join(name));
    let run = short(&["auto_find_batch_size=true", "per_device_train_batch_size=24"], &found);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_contains(&run.stderr, &["micro-batches of 24 fit; a step has 1\n"]);
    let config = String::from_utf8(bytes(&found, "config.toml")).unwrap();
    assert_contains(&config, &["auto_find_batch_size = false\n", "per_device_train_batch_size = 24\n"]);
    assert_eq!(short(&["per_device_train_batch_size=24"], &told).code, 0);
    assert_eq!(bytes(&found, "training.jsonl"), bytes(&told, "training.jsonl"));
}

#[test]
fn settings_are_shown_and_read_again() {
    let directory = tempdir().unwrap();
    let shown = run(args!["train", "--print-config", "--set", "lr_scheduler_type=cosine", "--set", "adapter.r=8"]);
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    assert_contains(&shown.stdout, &["lr_scheduler_type = \"cosine\"\n", "learning_rate = 0.004\n", "r = 8\n"]);
    let file = directory.path().join("run.toml");
    fs::write(&file, &shown.stdout).unwrap();
    let again = run(args!["train", "--print-config", "--config", &file]);
    assert_eq!(again.stdout, shown.stdout);
    let json = json(0, args!["train", "--print-config", "--config", &file]);
    assert_eq!(json["adapter"]["r"], json!(8));
    assert_eq!(json["eval_strategy"], json!("no"));
}

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/training.md")).unwrap()
}

/// The page about settings has all of them, with the defaults that they have.
#[test]
fn the_page_about_settings_is_true() {
    let told: BTreeMap<String, String> = page()
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let name = cells.next()?.strip_suffix('`')?.to_owned();
            Some((name, cells.next()?.trim_matches('`').to_owned()))
        })
        .collect();
    let settings = json(0, args!["train", "--print-config"]);
    let are = settings.as_object().unwrap().iter().map(|(name, value)| {
        let value = if value.is_null() { "none".to_owned() } else { value.to_string() };
        (name.clone(), if value.starts_with('{') { "below".to_owned() } else { value })
    });
    assert_eq!(told, are.collect());
}

#[test]
fn settings_that_cannot_be_are_refused_before_anything_is_read() {
    for (set, expected) in [
        ("learning_rat=1", "no setting is called `learning_rat`; the nearest name is `learning_rate`"),
        ("seed=many", "`seed` is \"many\""),
        ("seed", "write KEY=VALUE"),
        (
            "model.name=x",
            "`model` has no fields; only `adapter`, `generation`, `lr_scheduler_kwargs`, `optim_args` have",
        ),
        ("lr_scheduler_kwargs.power=2", "`lr_scheduler_kwargs.power` is 2, expected nothing"),
        ("optim_args.momentum=0.9", "`optim_args.momentum` is 0.9, expected a number in [0, 1) with `sgd`"),
        ("optim=adam", "unknown variant `adam`, expected one of `adamw_torch`"),
        ("num_train_epochs=0", "`num_train_epochs` is 0, expected a number above 0"),
        ("per_device_train_batch_size=0", "`per_device_train_batch_size` is 0, expected at least 1"),
        ("predict_with_generate=true", "`predict_with_generate` is set and `eval_strategy` is \"no\""),
        ("early_stopping_patience=1", "`early_stopping_patience` is set and `eval_strategy` is \"no\""),
        ("learning_rate=-1", "`learning_rate` is -1, expected a number of at least 0"),
        ("report_to=[\"wandb\"]", "unknown variant `wandb`, expected `tensorboard`"),
        ("adapter.rank=8", "rank"),
        ("adapter.peft_type=LORAX", "LORAX"),
        ("generation.beams=2", "`beams` is 2, which no field of generation is called"),
        ("data=nowhere", "nowhere"),
        ("columns=x", "`columns`"),
    ] {
        let directory = tempdir().unwrap();
        let output = directory.path().join("run");
        let run = told(train(&[set], &["--output".as_ref(), output.as_os_str()]));
        assert_eq!(run.code, 2, "{set}: {}", run.stdout);
        assert_contains(&run.stderr, &[expected]);
        assert!(!output.exists(), "{set}");
    }
    for (set, expected) in [
        (["max_steps=5", "num_train_epochs=1"], "`max_steps` is 5 and `num_train_epochs` is 1; give one of them"),
        (["group_by_length=true", "max_tokens_per_batch=99"], "put micro-batches together in two ways"),
        (["auto_find_batch_size=true", "max_tokens_per_batch=99"], "`max_tokens_per_batch` counts tokens; give one"),
        (
            ["eval_strategy=steps", "metric_for_best_model=rougeL"],
            "an evaluation finds loss, perplexity; `predict_with_generate` adds ROUGE",
        ),
    ] {
        let run = told(train(&set, &[]));
        assert_eq!(run.code, 2);
        assert_contains(&run.stderr, &[expected]);
    }
    let directory = tempdir().unwrap();
    let file = directory.path().join("run.toml");
    fs::write(&file, "seed = 1\nsede = 2\n").unwrap();
    assert_contains(&error(args!["train", "--config", &file]), &["run.toml: ", "`sede`; the nearest name is `seed`"]);
    fs::write(&file, "seed = \n").unwrap();
    assert_contains(&error(args!["train", "--config", &file]), &["run.toml: ", "line 1"]);
    assert_contains(&error(args!["train", "--resume", directory.path()]), &["there is no run in it"]);
}

#[test]
fn data_that_is_not_there_is_missed() {
    let directory = tempdir().unwrap();
    let (data, output) = (directory.path().join("data"), directory.path().join("run"));
    fs::create_dir(&data).unwrap();
    let set = format!("data={}", data.display());
    fs::write(data.join("train.csv"), "id,dialogue,summary\n").unwrap();
    let run = short(&[&set], &output);
    assert_eq!(run.code, 2, "{}", run.stdout);
    fs::write(data.join("train.csv"), "id,dialogue,summary\ntrain_0,#Person1#: Tea?,They talk of tea.\n").unwrap();
    let all = ["subsample=count:1", "max_steps=1", "max_source_length=16", "eval_strategy=steps", set.as_str()];
    let run = told(train(&all, &["--output".as_ref(), output.as_os_str()]));
    assert_eq!(run.code, 2, "{}", run.stdout);
    assert_contains(
        &run.stderr,
        &["`eval_strategy` is set, and there is nothing to evaluate by; give a validation split"],
    );
    assert!(!output.exists());
}

/// A process that is asked to end makes its step, saves, and says how to go on.
#[cfg(unix)]
#[test]
fn a_signal_ends_a_run_that_goes_on_to_the_same_adapter() {
    let directory = tempdir().unwrap();
    let [broken, whole] = ["broken", "whole"].map(|name| directory.path().join(name));
    let steps = "max_steps=60";
    let set = SHORT.iter().chain([&steps, &"save_steps=1000"]).flat_map(|set| ["--set", set]);
    let mut process = program();
    process.arg("train").args(set).arg("--output").arg(&broken).stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = process.spawn().unwrap();
    let log = broken.join("training.jsonl");
    while fs::read_to_string(&log).map_or(0, |log| log.lines().count()) < 3 {
        std::thread::sleep(Duration::from_millis(2));
    }
    let signalled = Command::new("kill").arg("-TERM").arg(process.id().to_string()).status().unwrap();
    assert!(signalled.success());
    let run = told(process.wait_with_output().unwrap());
    assert_eq!(run.code, 2, "{}", run.stdout);
    let resume = format!("error: stopped; go on with sideburn train --resume {}", broken.display());
    assert_eq!(run.stderr.lines().last().unwrap(), resume);
    assert!(!broken.join("final").exists());

    let refused = run_resumed(&broken, &["learning_rate=1"]);
    assert_contains(
        &refused.stderr,
        &["a run goes on with the settings that it began with, but for gradient_checkpointing, "],
    );
    let resumed = run_resumed(&broken, &["save_steps=25"]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(broken.join("checkpoint-50/manifest.json").exists());
    assert_eq!(short(&[steps], &whole).code, 0);
    for name in ["training.jsonl", "final/adapter_model.safetensors"] {
        assert_eq!(bytes(&broken, name), bytes(&whole, name), "{name}");
    }
    // A run that is over is over.
    assert_eq!(run_resumed(&broken, &[]).code, 0);
    assert_eq!(bytes(&broken, "training.jsonl"), bytes(&whole, "training.jsonl"));
}

fn run_resumed(path: &Path, set: &[&str]) -> Run {
    told(train(set, &["--resume".as_ref(), path.as_os_str()]))
}

/// A limit on the size of files stands in for a full disk: a checkpoint does not fit.
#[cfg(unix)]
#[test]
fn a_full_disk_ends_a_run_and_leaves_the_last_checkpoint() {
    let directory = tempdir().unwrap();
    let [full, whole] = ["full", "whole"].map(|name| directory.path().join(name));
    let run = short(&["max_steps=2"], &whole);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let run = short(&["max_steps=4", "save_steps=100"], &full);
    assert_eq!(run.code, 0, "{}", run.stderr);
    // As it was after no step.
    for name in ["checkpoint-4", "best", "final"] {
        let _ = fs::remove_dir_all(full.join(name));
    }
    let limited = format!(
        "trap '' XFSZ; ulimit -f 16; exec {} train --resume {} --set save_steps=2",
        env!("CARGO_BIN_EXE_sideburn"),
        full.display()
    );
    let run = told(Command::new("sh").arg("-c").arg(limited).output().unwrap());
    assert_eq!(run.code, 2, "{}", run.stdout);
    assert_contains(
        &run.stderr,
        &["the run ended before its end", "cannot write", "goes on with sideburn train --resume"],
    );
    assert!(!full.join("checkpoint-2").exists() && !full.join("final").exists());
    let names: Vec<String> =
        fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.contains(".tmp-")), "{names:?}");
    assert_eq!(run_resumed(&full, &[]).code, 0);
}

/// The whole model is a model directory afterwards.
#[test]
fn a_whole_model_is_trained() {
    let directory = tempdir().unwrap();
    let output = directory.path().join("run");
    let file = directory.path().join("full.toml");
    fs::write(&file, "max_steps = 2\nsubsample = \"count:8\"\nmax_source_length = 32\nper_device_train_batch_size = 2\nadapter = {}\n").unwrap();
    let trained = told(program().args(args!["train", "--config", &file, "--output", &output]).output().unwrap());
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    assert_contains(&trained.stdout, &["trainable%: 100.0000"]);
    AutoModel::from_dir(output.join("final"), &Device::flex()).unwrap();
    Tokenizer::from_dir(output.join("final")).unwrap();
}

/// Without MPI, processes that a launcher has started would each train by itself.
#[cfg(not(feature = "mpi"))]
#[test]
fn one_of_several_processes_is_refused_without_mpi() {
    let directory = tempdir().unwrap();
    let output = directory.path().join("run");
    let run = |count: &str| {
        let mut command = program();
        command.env("OMPI_COMM_WORLD_SIZE", count).args(["train", "--print-config"]).arg("--output").arg(&output);
        told(command.output().unwrap())
    };
    let refused = run("2");
    assert_eq!(refused.code, 2);
    assert_contains(
        &refused.stderr,
        &[
            "this is one of 2 processes of an MPI job, and this program was built without MPI, so that each would train by itself",
        ],
    );
    assert_eq!(run("1").code, 0);
}
