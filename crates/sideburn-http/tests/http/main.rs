//! The client, against a server on this machine.

#![forbid(unsafe_code)]

use std::io::{Cursor, Read};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sideburn_http::{Body, Http, HttpConfig, HttpError, Method, Request, Response};
use sideburn_testing::http::{HttpServer, Reply};

/// A client without pauses that waits for a quarter of a second.
fn http() -> Http {
    let config = HttpConfig {
        first_pause: Duration::ZERO,
        longest_pause: Duration::ZERO,
        read_timeout: Duration::from_millis(250),
        ..HttpConfig::default()
    };
    Http::new(config).unwrap()
}

/// Answers with these, one after the other, and then with the last.
fn script(replies: Vec<Reply>) -> HttpServer {
    let mut replies = replies.into_iter();
    let mut next = replies.next();
    HttpServer::start(move |_| {
        let reply = next.clone().unwrap();
        next = replies.next().or(next.take());
        reply
    })
}

/// Sends again what may pass, and gives the answer and how long the pauses were.
fn patient(http: &Http, request: &Request) -> (Result<Response, HttpError>, Vec<Duration>) {
    let mut pauses = Vec::new();
    (http.patiently(|| http.send(request), |_, pause| pauses.push(pause)), pauses)
}

#[test]
fn what_is_sent_arrives() {
    let server = HttpServer::start(|_| Reply::json(&json!({"answer": 42})).header("x-repo-commit", "abc"));
    let url = format!("{}/v1/chat?model=a%20b", server.url());
    let request = Request::post_json(&url, &json!({"n": 1})).bearer("secret").header("x-own", "yes");
    let response = http().send(&request).unwrap();
    assert_eq!((response.status(), response.header("X-Repo-Commit"), response.url()), (200, Some("abc"), &*url));
    assert_eq!(response.json::<Value>(100).unwrap(), json!({"answer": 42}));
    let [asked] = &server.requests()[..] else { panic!("one request") };
    assert_eq!(asked.line(), "POST /v1/chat?model=a%20b");
    assert_eq!(asked.json(), json!({"n": 1}));
    let header = |name| asked.header(name).unwrap();
    assert_eq!(header("authorization"), "Bearer secret");
    assert_eq!(
        (header("x-own"), header("content-type"), header("accept-encoding")),
        ("yes", "application/json", "identity")
    );
    assert!(header("user-agent").starts_with("sideburn/"), "{}", header("user-agent"));
    assert!(!format!("{request:?}").contains("secret"));
}

#[test]
fn a_body_is_read_piece_by_piece() {
    let server = HttpServer::start(|_| Reply::new(200).body("0123456789").slowly(3, Duration::from_millis(20)));
    let mut response = http().send(&Request::get(server.url())).unwrap();
    let (mut found, mut buffer) = (Vec::<u8>::new(), [0; 4]);
    loop {
        let count = response.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        found.extend(&buffer[..count]);
    }
    assert_eq!(found, b"0123456789");
}

#[test]
fn a_stream_is_sent_with_its_length_and_again() {
    let server = script(vec![Reply::new(503), Reply::new(200)]);
    let open = || Ok(Box::new(Cursor::new(vec![7; 100_000]).take(70_000)) as Box<dyn Read>);
    let body = Body::Stream { length: 70_000, open: Arc::new(open) };
    let (response, _) = patient(&http(), &Request::new(Method::Put, server.url()).body(body));
    assert_eq!(response.unwrap().status(), 200);
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!((request.method.as_str(), request.header("content-length")), ("PUT", Some("70000")));
        assert!(request.body == vec![7; 70_000]);
    }
}

#[test]
fn an_error_says_what_the_server_says() {
    let reply = |body: &str| Reply::new(400).body(body);
    let cases = [
        (
            Reply::new(403).header("x-error-message", "ask for access").header("x-error-code", "GatedRepo"),
            "status 403: ask for access",
        ),
        (reply(r#"{"error": "wrong"}"#), "status 400: wrong"),
        (reply(r#"{"error": {"message": "no such model", "code": 7}}"#), "status 400: no such model"),
        (reply(r#"{"detail": "Not Found"}"#), "status 400: Not Found"),
        (reply("plain \u{1b}[2J"), "status 400: plain \\u{1b}[2J"),
        (reply("<html>a page</html>"), "status 400"),
    ];
    for (reply, expected) in cases {
        let server = script(vec![reply]);
        let error = http().send(&Request::get(format!("{}/a?signature=secret", server.url()))).unwrap_err();
        assert_eq!(error.to_string(), format!("GET {}/a: {expected}", server.url()));
        assert!(!error.is_transient());
        if let (HttpError::Status { code, .. }, Some(403)) = (&error, error.status_code()) {
            assert_eq!(code.as_deref(), Some("GatedRepo"));
        }
    }
}

#[test]
fn what_may_pass_is_tried_again() {
    let limited = Reply::new(429).header("ratelimit", "\"api\";r=0;t=0");
    let server = script(vec![Reply::new(503), Reply::new(429).header("retry-after", "0"), limited, Reply::new(200)]);
    let (response, pauses) = patient(&http(), &Request::get(server.url()));
    assert_eq!((response.unwrap().status(), pauses), (200, vec![Duration::ZERO; 3]));

    let server = script(vec![Reply::new(500).body("down")]);
    let (response, pauses) = patient(&http(), &Request::get(server.url()));
    assert!(response.unwrap_err().to_string().ends_with("status 500: down"));
    assert_eq!((pauses.len(), server.requests().len()), (5, 6));

    // What does not pass is not tried again, nor what would take an hour.
    for reply in [Reply::new(404), Reply::new(429).header("retry-after", "3600")] {
        let server = script(vec![reply]);
        let (response, pauses) = patient(&http(), &Request::get(server.url()));
        assert!(response.is_err());
        assert_eq!((pauses.len(), server.requests().len()), (0, 1));
    }
}

#[test]
fn pauses_grow_to_their_limit_and_a_server_may_ask_for_longer_ones() {
    let http = Http::new(HttpConfig::default()).unwrap();
    let failure = |reply: Reply| {
        let server = script(vec![reply]);
        http.send(&Request::get(server.url())).unwrap_err()
    };
    let pauses = |error: &HttpError| {
        let pauses = (1..=6).map_while(|failures| http.pause_after(failures, error));
        pauses.map(|pause| pause.as_secs()).collect::<Vec<_>>()
    };
    assert_eq!(pauses(&failure(Reply::new(502))), [1, 2, 4, 8, 8]);
    assert_eq!(pauses(&failure(Reply::new(429).header("retry-after", "60"))), [60; 5]);
    // As a date, by the server's clock.
    let dated =
        |date: &str| Reply::new(429).header("date", "Tue, 15 Nov 1994 08:12:31 GMT").header("retry-after", date);
    assert_eq!(pauses(&failure(dated("Tue, 15 Nov 1994 08:13:31 GMT"))), [60; 5]);
    assert_eq!(pauses(&failure(dated("Tue, 15 Nov 1994 08:12:00 GMT"))), [1, 2, 4, 8, 8], "it is past");
    assert_eq!(pauses(&failure(dated("tomorrow"))), [1, 2, 4, 8, 8]);
    assert_eq!(pauses(&failure(Reply::new(400))), [0; 0]);
}

#[test]
fn the_token_stays_at_home() {
    let other = HttpServer::start(|_| Reply::new(200).body("from elsewhere"));
    let elsewhere = format!("{}/blob", other.url());
    let server = HttpServer::start(move |request| match request.path() {
        "/away" => Reply::redirect(302, &elsewhere),
        "/renamed" => Reply::redirect(307, "/new"),
        "/folder/relative" => Reply::redirect(301, "there?a=1"),
        _ => Reply::new(200).body("at home"),
    });
    let ask = |path: &str| Request::get(format!("{}{path}", server.url())).bearer("secret");
    let text = |response: Response| String::from_utf8(response.bytes(100).unwrap()).unwrap();
    assert_eq!(text(http().send(&ask("/away")).unwrap()), "from elsewhere");
    assert_eq!(other.requests()[0].header("authorization"), None);
    assert_eq!(text(http().send(&ask("/renamed")).unwrap()), "at home");
    assert_eq!(text(http().send(&ask("/folder/relative")).unwrap()), "at home");
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.header("authorization") == Some("Bearer secret")));
    let lines: Vec<String> = requests.iter().map(|request| request.target.clone()).collect();
    assert_eq!(lines, ["/away", "/renamed", "/new", "/folder/relative", "/folder/there?a=1"]);

    // Some want to see where they are sent.
    let response = http().send(&ask("/away").within_origin()).unwrap();
    assert_eq!((response.status(), response.header("location")), (302, Some(&*format!("{}/blob", other.url()))));
    assert_eq!(text(http().send(&ask("/renamed").within_origin()).unwrap()), "at home");
    assert_eq!(other.requests().len(), 1);
}

#[test]
fn the_token_does_not_come_back_by_way_of_another_host() {
    let back: Arc<std::sync::Mutex<String>> = Arc::default();
    let target = Arc::clone(&back);
    let other = HttpServer::start(move |_| Reply::redirect(302, target.lock().unwrap().clone()));
    let elsewhere = other.url();
    let server = HttpServer::start(move |request| match request.path() {
        "/" => Reply::redirect(302, &elsewhere),
        _ => Reply::new(200),
    });
    *back.lock().unwrap() = format!("{}/chosen-by-another", server.url());
    http().send(&Request::get(format!("{}/", server.url())).bearer("secret")).unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].header("authorization"), None);
}

#[test]
fn redirects_that_are_not_followed() {
    let other = HttpServer::start(|_| Reply::new(200));
    let elsewhere = other.url();
    let server = HttpServer::start(move |request| match request.path() {
        "/circle" => Reply::redirect(302, "/circle"),
        "/away" => Reply::redirect(307, &elsewhere),
        "/file" => Reply::redirect(302, "file:///etc/passwd"),
        "/same" => Reply::redirect(308, "/kept"),
        _ => Reply::redirect(302, "/get"),
    });
    let error = |request: Request| http().send(&request).unwrap_err().to_string();
    let at = |path: &str| format!("{}{path}", server.url());
    let circle = error(Request::get(at("/circle")));
    assert!(circle.ends_with("which is not followed: there were ten redirects already"), "{circle}");
    assert_eq!(server.take_lines().len(), 11);
    for path in ["/away", "/other"] {
        let post = error(Request::post_json(at(path), &json!({})));
        assert!(post.contains("what is sent is for the first address only"), "{post}");
    }
    let file = error(Request::get(at("/file")));
    assert_eq!(file, "\"file:///etc/passwd\" is no URL of a server; expected http:// or https://, and a host");
    assert!(other.requests().is_empty());
    // Within the origin, a body is sent again.
    server.take_lines();
    let _ = http().send(&Request::post_json(at("/same"), &json!({"kept": true})));
    assert_eq!(server.requests()[1].json(), json!({"kept": true}));
}

#[test]
fn connections_that_break() {
    let cut = script(vec![Reply::new(200).body("0123456789").cut(4)]);
    let error = http().send(&Request::get(cut.url())).unwrap().bytes(100).unwrap_err();
    assert!(error.to_string().ends_with("the connection ended in the middle of the answer"), "{error}");
    assert!(error.is_transient());
    // It is the whole that is tried again.
    let cut = script(vec![Reply::new(200).body("[1, 2]").cut(4), Reply::new(200).body("[1, 2]")]);
    let (client, request) = (http(), Request::get(cut.url()));
    let found = client.patiently(|| client.send(&request)?.json::<Vec<u32>>(100), |_, _| ());
    assert_eq!((found.unwrap(), cut.requests().len()), (vec![1, 2], 2));

    let never = Duration::from_secs(30);
    let late = script(vec![Reply::new(200).after(never)]);
    let error = http().send(&Request::get(late.url())).unwrap_err();
    assert!(error.to_string().contains("no answer in time") && error.is_transient(), "{error}");
    let silent = script(vec![Reply::new(200).body("0123456789").slowly(20, never)]);
    let error = http().send(&Request::get(silent.url())).unwrap().bytes(100).unwrap_err();
    assert!(error.is_transient(), "{error}");

    // A port that nobody listens at.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = http().send(&Request::get(format!("http://{closed}/"))).unwrap_err();
    assert!(error.to_string().ends_with("the connection is refused; does a server run there?"), "{error}");
    assert!(!error.is_transient());
}

#[test]
fn answers_that_are_not_as_expected() {
    let server = script(vec![Reply::new(200).body("<html>log in</html>")]);
    let ask = || http().send(&Request::get(server.url())).unwrap();
    let error = ask().json::<Value>(1000).unwrap_err().to_string();
    assert!(error.contains("the answer is not the expected JSON (expected value at line 1 column 1)"), "{error}");
    let error = ask().bytes(18).unwrap_err().to_string();
    assert!(error.contains("the answer has more than 18 bytes"), "{error}");
    assert_eq!(ask().bytes(19).unwrap().len(), 19);
    for url in ["localhost:8000/v1", "ftp://localhost/", "http://", "", "a b"] {
        let error = http().send(&Request::get(url)).unwrap_err().to_string();
        assert!(error.ends_with("is no URL of a server; expected http:// or https://, and a host"), "{error}");
    }
}

/// Runs a test of this program in a process of its own, with a variable. Whether it passed, and what it told.
fn child(test: &str, variable: &str, value: &str) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env("HTTP_TEST_CHILD", test).env(variable, value);
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

/// Whether this is such a process.
fn is_child(test: &str) -> bool {
    std::env::var("HTTP_TEST_CHILD").is_ok_and(|name| name == test)
}

#[test]
fn with_certificates() {
    if let Err(error) = Http::new(HttpConfig::default())
        && is_child("with_certificates")
    {
        panic!("{error}");
    }
}

#[test]
fn a_file_of_certificates_must_have_some() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    let run = || child("with_certificates", "SSL_CERT_FILE", path.to_str().unwrap());
    let (passed, told) = run();
    assert!(!passed && told.contains("of which no certificate can be read (No such file"), "{told}");
    std::fs::write(&path, "nothing").unwrap();
    let (passed, told) = run();
    assert!(
        !passed && told.contains("of which no certificate can be read (it holds none); mend or unset it"),
        "{told}"
    );
    assert!(child("with_certificates", "SSL_CERT_FILE", "").0);
}

#[test]
fn through_a_proxy() {
    if is_child("through_a_proxy") {
        let server = script(vec![Reply::new(200)]);
        http().send(&Request::get(server.url())).unwrap();
        panic!("{}", http().send(&Request::get("http://sideburn.invalid/")).unwrap_err());
    }
}

#[test]
fn a_server_on_this_machine_is_asked_without_the_proxy() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (passed, told) = child("through_a_proxy", "ALL_PROXY", &format!("http://{closed}"));
    assert!(!passed && told.contains("GET http://sideburn.invalid/: the connection is refused"), "{told}");
}
