use super::*;

#[test]
fn the_cpu_is_there_and_computes() {
    let found = json(0, args!["devices"]);
    assert_eq!(found["built_in"][0], "flex");
    let cpu = &found["devices"][0];
    assert_eq!((&cpu["name"], &cpu["card"], &cpu["dtypes"][0]), (&json!("flex"), &Value::Null, &json!("f32")));
    assert!(["f32", "bf16", "int8"].iter().all(|dtype| cpu["instructions"][dtype].is_string()), "{cpu}");
    for test in cpu["tests"].as_array().unwrap() {
        assert_eq!(test["verdict"], "ok", "{test}");
        assert!(test["difference"].as_f64().unwrap() <= test["tolerance"].as_f64().unwrap(), "{test}");
    }
    let text = run(args!["devices"]);
    assert_contains(&text.stdout, &["built with: flex", "the CPU", "f32 ok: ", "flex multiplies f32 by "]);
}

#[test]
fn what_is_no_device_fails_and_is_named() {
    let found = json(1, args!["devices", "flex", "tpu"]);
    assert_eq!(found["devices"][0]["tests"][0]["verdict"], "ok");
    assert_contains(found["devices"][1]["error"].as_str().unwrap(), &["\"tpu\" is no device", "cuda"]);
    let text = run(args!["devices", "tpu"]);
    assert_eq!(text.code, 1);
    assert_contains(&text.stdout, &["\"tpu\" is no device"]);
}

#[test]
fn a_precision_is_one_of_three() {
    let message = error(args!["verify", "--model", "m", "--reference", "r", "--matmul-precision", "tf32"]);
    assert_contains(&message, &["tf32", "expected highest, high or medium"]);
}
