//! `sideburn devices`: what there is to compute on, and whether it computes.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use sideburn::device::{DeviceInfo, built_in, inspect, names, parse_device};
use sideburn::kernels::{CpuInstructions, refused_kernels};

use crate::report::{Finding, Verdict, table};

/// List the devices that this program can use, and have each compute something
///
/// Each device does a second's work in each of its dtypes, which is held against the CPU's. Fails if one differs, or cannot
/// be opened. The name of a device is what `--device` takes elsewhere.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these, such as cuda:1; all if none is named
    #[arg(value_name = "DEVICE")]
    names: Vec<String>,
}

#[derive(Serialize)]
pub(crate) struct Devices {
    /// The backends that the program was built with.
    built_in: Vec<&'static str>,
    devices: Vec<Found>,
    /// Backends that find nothing to run on, and why.
    without_devices: Vec<Missing>,
    /// Operations whose kernel a GPU could not compile, and what it says.
    refused_kernels: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Found {
    name: String,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Opened {
        card: Option<String>,
        instructions: Option<Instructions>,
        memory_bytes: Option<u64>,
        dtypes: Vec<&'static str>,
        tests: Vec<Test>,
    },
    Failed {
        error: String,
    },
}

/// The instructions that products on the CPU use.
#[derive(Serialize)]
struct Instructions {
    f32: &'static str,
    bf16: &'static str,
    int8: &'static str,
}

#[derive(Serialize)]
struct Test {
    dtype: &'static str,
    verdict: Verdict,
    difference: f64,
    tolerance: f64,
    first_seconds: f64,
    seconds: f64,
}

#[derive(Serialize)]
struct Missing {
    backend: &'static str,
    reason: String,
}

pub(crate) fn run(args: Args) -> Devices {
    let all = if args.names.is_empty() { names() } else { args.names };
    let found = |name: String| {
        let outcome = inspect(&name).map_or_else(|error| Outcome::Failed { error: error.to_string() }, Outcome::from);
        Found { name, outcome }
    };
    let missing = |backend| parse_device(backend).err().map(|error| Missing { backend, reason: error.to_string() });
    let devices = all.into_iter().map(found).collect();
    let without_devices = built_in().into_iter().filter_map(missing).collect();
    Devices { built_in: built_in(), devices, without_devices, refused_kernels: refused_kernels() }
}

impl From<DeviceInfo> for Outcome {
    fn from(DeviceInfo { card, instructions, memory, dtypes, tests, .. }: DeviceInfo) -> Self {
        let test = |test: &sideburn::device::SelfTest| Test {
            dtype: test.dtype,
            verdict: if test.passed() { Verdict::Ok } else { Verdict::Failed },
            difference: test.difference,
            tolerance: test.tolerance,
            first_seconds: test.first_seconds,
            seconds: test.seconds,
        };
        let instructions = instructions.map(|CpuInstructions { f32, bf16, int8 }| Instructions { f32, bf16, int8 });
        Self::Opened { card, instructions, memory_bytes: memory, dtypes, tests: tests.iter().map(test).collect() }
    }
}

impl Finding for Devices {
    fn passed(&self) -> bool {
        self.devices.iter().all(|device| match &device.outcome {
            Outcome::Opened { tests, .. } => tests.iter().all(|test| test.verdict == Verdict::Ok),
            Outcome::Failed { .. } => false,
        })
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "built with: {}\n", self.built_in.join(", "))?;
        let head =
            ["device", "card", "memory", "dtypes", "self-test: difference to the CPU, seconds at first and again"];
        let mut rows = vec![head.map(str::to_owned)];
        for Found { name, outcome } in &self.devices {
            rows.push(match outcome {
                Outcome::Opened { card, memory_bytes, dtypes, tests, .. } => [
                    name.clone(),
                    card.clone().unwrap_or_else(|| "the CPU".to_owned()),
                    memory_bytes.map_or_else(|| "not told".to_owned(), |bytes| format!("{} MiB", bytes >> 20)),
                    dtypes.join(", "),
                    tests.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
                ],
                Outcome::Failed { error } => [name.clone(), String::new(), String::new(), String::new(), error.clone()],
            });
        }
        table(f, &rows)?;
        for Found { name, outcome } in &self.devices {
            if let Outcome::Opened { instructions: Some(Instructions { f32, bf16, int8 }), .. } = outcome {
                write!(f, "\n{name} multiplies f32 by {f32}, bf16 by {bf16} and integers of 8 bits by {int8}")?;
            }
        }
        for Missing { backend, reason } in &self.without_devices {
            write!(f, "\n{backend}: {reason}")?;
        }
        for (name, reason) in &self.refused_kernels {
            write!(f, "\nthe kernel of {name} is refused, so that it is slower: {reason}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dtype, verdict, difference, first_seconds, seconds, .. } = self;
        write!(f, "{dtype} {verdict}: {difference:.1e}, {first_seconds:.3} s, {seconds:.3} s")
    }
}
