//! Where the time goes, operation by operation.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// How long an operation took, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The name of the operation, or of the part of a step.
    pub name: Cow<'static, str>,
    /// When it began, in microseconds since the first event of the process.
    pub start_us: f64,
    /// How long it took, in microseconds.
    pub duration_us: f64,
    /// The number of its thread. The first thread that records is 1, the next one 2.
    pub thread: u64,
}

static RECORDING: AtomicBool = AtomicBool::new(false);
static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());

/// Turns recording on or off. While it is off, it costs an operation one load.
pub fn record_profile(on: bool) {
    RECORDING.store(on, Ordering::Relaxed);
}

/// The events recorded since the last call.
pub fn take_profile() -> Vec<Event> {
    std::mem::take(&mut EVENTS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A file in Chrome's trace format, which `chrome://tracing` and Perfetto read: an array with one event on each line.
/// The format does not need the closing bracket, and none is written.
#[derive(Debug)]
pub struct ChromeEvents<W> {
    to: W,
}

impl<W: Write> ChromeEvents<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin(mut to: W) -> io::Result<Self> {
        to.write_all(b"[\n")?;
        Ok(Self { to })
    }

    /// Writes events and flushes.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&mut self, events: &[Event]) -> io::Result<()> {
        for Event { name, start_us, duration_us, thread } in events {
            // Debug formatting escapes quotes and backslashes as JSON does; names hold nothing else to be escaped.
            writeln!(
                self.to,
                r#"{{"name":{name:?},"ph":"X","pid":1,"tid":{thread},"ts":{start_us:.3},"dur":{duration_us:.3}}},"#
            )?;
        }
        self.to.flush()
    }
}

/// Measures the time until it is dropped, if recording is on. On a GPU that is the time until the work was queued, not
/// until it was done.
#[derive(Debug)]
#[must_use = "it measures until it is dropped"]
pub struct Span(Option<(Cow<'static, str>, Instant)>);

impl Span {
    /// Begins an event of this name.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(RECORDING.load(Ordering::Relaxed).then(|| {
            origin();
            (name.into(), Instant::now())
        }))
    }
}

fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

impl Drop for Span {
    fn drop(&mut self) {
        use std::sync::atomic::AtomicU64;
        static NEXT: AtomicU64 = AtomicU64::new(1);
        thread_local!(static THREAD: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
        let Some((name, start)) = self.0.take() else { return };
        let event = Event {
            name,
            start_us: start.duration_since(origin()).as_secs_f64() * 1e6,
            duration_us: start.elapsed().as_secs_f64() * 1e6,
            thread: THREAD.with(|thread| *thread),
        };
        EVENTS.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_written() {
        drop(Span::new("before"));
        record_profile(true);
        {
            let _outer = Span::new("outer");
            drop(Span::new("inner"));
        }
        record_profile(false);
        drop(Span::new("after"));
        let events: Vec<Event> = take_profile()
            .into_iter()
            .filter(|event| ["before", "outer", "inner", "after"].contains(&&*event.name))
            .collect();
        let [inner, outer] = &events[..] else { panic!("{events:?}") };
        assert_eq!((&*inner.name, &*outer.name), ("inner", "outer"));
        assert!(outer.start_us <= inner.start_us && outer.duration_us >= inner.duration_us);

        let event = Event { name: "a \"b\"".into(), start_us: 1.5, duration_us: 2.0, thread: 3 };
        let mut out = Vec::new();
        ChromeEvents::begin(&mut out).unwrap().write(&[event]).unwrap();
        let lines = "[\n{\"name\":\"a \\\"b\\\"\",\"ph\":\"X\",\"pid\":1,\"tid\":3,\"ts\":1.500,\"dur\":2.000},\n";
        assert_eq!(String::from_utf8(out).unwrap(), lines);
    }
}
