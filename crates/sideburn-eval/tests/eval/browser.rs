//! The page in a browser: Chromium without a window, driven through its debugging protocol over a pipe.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::report::report;

struct Browser {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Of the page.
    session: Option<String>,
    messages: u64,
    /// What the page has said on its console, and what went wrong in it.
    console: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    /// `None` where there is no Chromium.
    fn start() -> Option<Self> {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let is_there =
            |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
        let name = names.iter().find(is_there)?;
        let profile = tempfile::tempdir().unwrap();
        // The protocol goes over the descriptors 3 and 4.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 >/dev/null", "sh", name, "--headless", "--remote-debugging-pipe"])
            .args(["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let (session, messages, console) = (None, 0, Vec::new());
        let mut browser = Self { process, input, output, session, messages, console, _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.messages += 1;
        let mut message = json!({ "id": self.messages, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let answer = self.read();
            if answer["id"] == self.messages {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// The next message of the browser.
    fn read(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.output.read_until(0, &mut bytes).unwrap();
        assert_eq!(bytes.pop(), Some(0), "the browser has ended");
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        if let Some("Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded") =
            message["method"].as_str()
        {
            self.console.push(message["params"].to_string());
        }
        message
    }

    fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
        while self.read()["method"] != "Page.loadEventFired" {}
    }

    /// What a piece of JavaScript gives in the page.
    #[track_caller]
    fn eval(&mut self, script: &str) -> Value {
        let params = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", params);
        assert!(result.get("exceptionDetails").is_none(), "{script}: {result}");
        result["result"]["value"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const IDS: &str = "[...document.querySelectorAll('#rows tbody tr:not([hidden]) b:first-of-type')].filter(b => b.parentNode.scope)\
                   .map(b => b.textContent)";

#[test]
fn a_browser_shows_the_page_and_has_nothing_to_complain_of() {
    let Some(mut browser) = Browser::start() else {
        println!("skipped: there is no chromium here; on Debian, apt-get install chromium");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("report.html");
    let html = report(1500, 50).to_html();
    assert!(html.len() < 6 << 20, "{} bytes", html.len());
    std::fs::write(&page, html).unwrap();
    browser.open(&format!("file://{}", page.display()));

    assert_eq!(browser.eval("document.title"), "Made up, <test>", "no script of a dialogue has run");
    assert_eq!(browser.eval("document.querySelectorAll('#rows tbody tr').length"), 1500);
    assert_eq!(browser.eval("document.querySelector('[data-l=References]').parentNode.cells.length"), 5);
    assert!(browser.eval("document.querySelectorAll('mark').length").as_u64().unwrap() > 1500);
    assert_eq!(browser.eval("performance.getEntriesByType('resource').length"), 0, "nothing is fetched");
    for width in [390, 1600] {
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", metrics);
        let overflow = browser.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth");
        assert_eq!(overflow, 0, "at {width} pixels nothing but tables scrolls sideways");
    }

    // Search.
    browser.eval("search.value = 'TEST_77  topic'; search.dispatchEvent(new Event('input'))");
    browser.eval("new Promise(done => setTimeout(done, 300))");
    // 77, and 770 to 779.
    assert_eq!(browser.eval(&format!("{IDS}.length")), 11);
    assert_eq!(browser.eval("found.textContent"), "11 of 1,500 dialogues");
    browser.eval("search.value = ''; search.dispatchEvent(new Event('input'))");
    browser.eval("new Promise(done => setTimeout(done, 300))");
    assert_eq!(browser.eval("found.textContent"), "1,500 dialogues");

    // Sorting, by the heads and by the list.
    browser.eval("document.querySelectorAll('#rows thead button')[1].click()");
    assert_eq!(browser.eval("document.querySelectorAll('#rows thead th')[2].ariaSort"), "descending");
    let column =
        "[...document.querySelectorAll('#rows tbody tr')].map(row => Number(row.cells[2].dataset.v.split(' ')[0]))";
    assert_eq!(browser.eval(&format!("{column}.every((x, at, all) => at === 0 || all[at - 1] >= x)")), true);
    browser.eval("sort.value = '1.4-0.4'; down.checked = false; sort.dispatchEvent(new Event('change'))");
    let differences = "[...document.querySelectorAll('#rows tbody tr')].map(row => [3, 2].map(at => parseFloat(row.cells[at].dataset.v\
                       .split(' ')[4]))).map(([a, b]) => a - b)";
    let told = format!("{differences}.filter(x => !Number.isNaN(x))");
    assert_eq!(browser.eval(&format!("{told}.every((x, at, all) => at === 0 || all[at - 1] <= x)")), true);
    assert_eq!(browser.eval(&format!("Number.isNaN({differences}.at(-1))")), true, "what is not told comes last");
    browser.eval("sort.value = 'o'; sort.dispatchEvent(new Event('change'))");
    assert_eq!(browser.eval(&format!("{IDS}.slice(0, 3).join()")), "test_0,test_1,test_2");

    assert_eq!(browser.console, Vec::<String>::new());
}

#[test]
fn without_scripts_everything_can_be_read() {
    let Some(mut browser) = Browser::start() else {
        println!("skipped: there is no chromium here; on Debian, apt-get install chromium");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("report.html");
    std::fs::write(&page, report(44, 20).to_html()).unwrap();
    browser.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    browser.open(&format!("file://{}", page.display()));
    let document = browser.call("DOM.getDocument", json!({ "depth": 0 }))["root"]["nodeId"].clone();
    let mut count = |selector: &str| {
        let found = browser.call("DOM.querySelectorAll", json!({ "nodeId": document, "selector": selector }));
        found["nodeIds"].as_array().unwrap().len()
    };
    assert_eq!(count("#rows tbody tr"), 44);
    assert_eq!((count("#tools[hidden]"), count("th button")), (1, 0), "there is no control that does nothing");
    assert_eq!(count("#rows details > .d"), 44);
}
