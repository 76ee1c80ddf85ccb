//! Where results go: standard output that is closed or full, and what must not reach a terminal.

use std::process::Stdio;

use super::*;

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_no_success() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for args in [
        args!["adapter", "inspect", golden(ADAPTER)],
        args!["adapter", "inspect", golden(ADAPTER), "--json"],
        args!["--help"],
        args!["--version"],
    ] {
        let output = program().args(&args).stdout(full()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert_contains(&stderr, &["error: the standard output could not be written", "No space left"]);
    }
}

/// As `| head -1` does, which has read enough.
#[test]
fn a_closed_pipe_is_no_error() {
    for args in [args!["adapter", "inspect", golden(ADAPTER), "--sites"], args!["--help"]] {
        let mut child = program().args(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()),
            (Some(0), ""),
            "{args:?}"
        );
    }
}

/// Names in files, values of fields, paths and arguments come from strangers.
#[test]
fn control_characters_do_not_reach_the_terminal() {
    let hostile = "\u{1b}[2Jx\u{9b}1A\r\u{7f}";
    let directory = changed(ADAPTER, |tensors| {
        let b = tensors.remove(Q_B).unwrap();
        tensors.insert(format!("base_model.model.{hostile}.lora_B.weight"), b);
    });
    let config = directory.path().join("adapter_config.json");
    let mut fields: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    fields["base_model_name_or_path"] = json!(format!("base{hostile}\nok  everything\0"));
    fields["task_type"] = json!(hostile);
    fs::write(&config, fields.to_string()).unwrap();
    let inspect = args!["adapter", "inspect", directory.path(), "--sites"];
    let check = args!["adapter", "check", directory.path(), "--base", golden(BASE)];
    let nowhere = args!["adapter", "check", format!("nowhere{hostile}"), "--base", golden(BASE)];
    let unknown = args![format!("--{hostile}")];
    for args in [inspect, check, nowhere, unknown] {
        for format in [&[] as &[&str], &["--json"]] {
            let args: Vec<_> = args.iter().cloned().chain(format.iter().map(Into::into)).collect();
            let run = run(args.clone());
            for text in [&run.stdout, &run.stderr] {
                let found = text.chars().find(|c| c.is_control() && *c != '\n');
                assert_eq!(found, None, "{args:?}: {text:?}");
            }
        }
    }
    let text = run(args!["adapter", "inspect", directory.path()]).stdout;
    assert_contains(&text, &["base\\u{1b}[2Jx\\u{9b}1A\\r\\u{7f}\\nok  everything\\0\n"]);
    let found = json(0, args!["adapter", "inspect", directory.path()]);
    assert_eq!(found["task_type"], json!(hostile), "JSON keeps what it was");
}
