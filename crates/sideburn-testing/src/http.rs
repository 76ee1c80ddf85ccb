//! A server on this machine that answers as a test says, and remembers what it was asked.
//!
//! ```
//! use sideburn_testing::http::{HttpServer, Reply};
//!
//! let server = HttpServer::start(|request| match request.path() {
//!     "/hello" => Reply::new(200).body("hello"),
//!     _ => Reply::new(404),
//! });
//! println!("ask {}/hello", server.url());
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What a server was asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `POST`, ...
    pub method: String,
    /// Path and query, as they were sent.
    pub target: String,
    /// Names in small letters, and values.
    pub headers: Vec<(String, String)>,
    /// The body, its chunks put together.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of a header; the name in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Method and target: `GET /path?query`.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }

    /// The body as JSON, which it must be.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The first byte that is asked for: 7 of `Range: bytes=7-`, 0 without a range.
    pub fn range_start(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |start| start.parse().unwrap())
    }
}

/// What a server answers.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    late: Duration,
    cut: Option<usize>,
    chunks: Option<(usize, Duration)>,
}

impl Reply {
    /// An answer without a body.
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), late: Duration::ZERO, cut: None, chunks: None }
    }

    /// An answer of JSON, with status 200.
    pub fn json(value: &serde_json::Value) -> Self {
        Self::new(200).header("content-type", "application/json").body(value.to_string())
    }

    /// An answer that sends the client elsewhere.
    pub fn redirect(status: u16, location: impl Into<String>) -> Self {
        Self::new(status).header("location", location)
    }

    /// With a header.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// With a body, whose length is told.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// With what of a file a request wants: all of it (status 200), or from a byte on (status 206).
    pub fn file(mut self, request: &Request, content: &[u8]) -> Self {
        let start = request.range_start();
        if start > 0 {
            self.status = 206;
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            self = self.header("content-range", range);
        }
        self.body(&content[start..])
    }

    /// After a while.
    pub fn after(mut self, late: Duration) -> Self {
        self.late = late;
        self
    }

    /// So many bytes of the body, then the connection ends.
    pub fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// The body in pieces of so many bytes, and a pause before each.
    pub fn slowly(mut self, bytes: usize, pause: Duration) -> Self {
        self.chunks = Some((bytes, pause));
        self
    }

    fn send(&self, head: bool, mut to: TcpStream) -> io::Result<()> {
        thread::sleep(self.late);
        let mut text = format!("HTTP/1.1 {} Reply\r\nconnection: close\r\n", self.status);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            text += &format!("content-length: {}\r\n", self.body.len());
        }
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        to.write_all((text + "\r\n").as_bytes())?;
        if head {
            return Ok(());
        }
        let body = &self.body[..self.cut.unwrap_or(self.body.len())];
        let (size, pause) = self.chunks.unwrap_or((body.len().max(1), Duration::ZERO));
        for piece in body.chunks(size) {
            thread::sleep(pause);
            to.write_all(piece)?;
        }
        Ok(())
    }
}

/// A server on a port of its own, until it is dropped. Each request is answered on a connection of its own.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Starts one that answers with what `answer` makes of a request. It is asked one request after the other, while
    /// answers are sent at the same time.
    pub fn start(answer: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = Self { address, requests: Arc::default(), is_over: Arc::default(), thread: None };
        let (requests, is_over) = (Arc::clone(&server.requests), Arc::clone(&server.is_over));
        let answer = Arc::new(Mutex::new(answer));
        server.thread = Some(thread::spawn(move || {
            for connection in listener.incoming() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let (answer, requests) = (Arc::clone(&answer), Arc::clone(&requests));
                thread::spawn(move || serve(connection?, &answer, &requests));
            }
        }));
        server
    }

    /// `http://127.0.0.1:` and the port.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All that was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The lines of all that was asked so far, which is forgotten.
    pub fn take_lines(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap()).iter().map(Request::line).collect()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // It waits for a connection.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    connection: TcpStream,
    answer: &Mutex<impl FnMut(&Request) -> Reply>,
    requests: &Mutex<Vec<Request>>,
) -> io::Result<()> {
    let Some(request) = read(&mut BufReader::new(&connection))? else { return Ok(()) };
    requests.lock().unwrap().push(request.clone());
    let reply = (answer.lock().unwrap())(&request);
    reply.send(request.method == "HEAD", connection)
}

/// Reads a request; none where the client has gone.
fn read(from: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut first = String::new();
    from.read_line(&mut first)?;
    let mut parts = first.split_whitespace().map(str::to_owned);
    let (Some(method), Some(target)) = (parts.next(), parts.next()) else { return Ok(None) };
    let mut request = Request { method, target, headers: Vec::new(), body: Vec::new() };
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    if request.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut size = String::new();
            from.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            // With the end of its line.
            let mut chunk = vec![0; size + 2];
            from.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            request.body.extend_from_slice(&chunk[..size]);
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    request.body.extend(body);
    Ok(Some(request))
}
