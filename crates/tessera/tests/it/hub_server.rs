//! A hub and its storage, small: what huggingface.co and its CDN answer for one repository, with faults on request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest, Sha256};

pub const REPO: &str = "acme/tiny";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// How long a stalled connection stays open, unless the server ends before.
const STALL: Duration = Duration::from_secs(30);

/// What is wrong with the next answers of the storage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Half of what was asked for, then the connection closes; so many times.
    Drops(usize),
    /// Half of what was asked for, then silence; so many times.
    Stalls(usize),
    /// Not one byte of content, ever.
    Silent,
    /// The right number of wrong bytes.
    WrongBytes,
    /// The whole file, whatever range was asked for.
    IgnoresRange,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

pub struct HubServer {
    pub endpoint: String,
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<std::net::SocketAddr>,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    storage: String,
    token: Option<String>,
    fault: Mutex<Option<Fault>>,
    requests: Mutex<Vec<Request>>,
    ends: AtomicBool,
}

impl HubServer {
    /// Serves the files of `folder`, and some that nobody needs.
    pub fn start(folder: &Path, token: Option<&str>, fault: Option<Fault>) -> Self {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            files.insert(entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
        }
        for name in
            [".gitattributes", "README.md", "metal/model.bin", "original/config.json", "original/model.safetensors"]
        {
            files.insert(name.to_owned(), b"nobody needs this".to_vec());
        }
        let listeners = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        let state = Arc::new(State {
            files,
            storage: format!("http://{}", addresses[1]),
            token: token.map(str::to_owned),
            fault: Mutex::new(fault),
            requests: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let threads = listeners.into_iter().map(|listener| {
            let state = Arc::clone(&state);
            std::thread::spawn(move || accept(&listener, &state))
        });
        Self { endpoint: format!("http://{}", addresses[0]), threads: threads.collect(), state, addresses }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// The ranges that the storage was asked for, in order, of this file.
    pub fn ranges_of(&self, file: &str) -> Vec<Option<String>> {
        let path = format!("/storage/{file}");
        self.requests().into_iter().filter(|r| r.path == path).map(|r| r.range).collect()
    }

    pub fn file(&self, name: &str) -> &[u8] {
        &self.state.files[name]
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::Relaxed);
        for address in &self.addresses {
            let _ = TcpStream::connect(address);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What the hub calls a file's content: the SHA-256 of large files, another hash of small ones.
pub fn etag(name: &str, content: &[u8]) -> String {
    let digest: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
    if is_large(name) { digest } else { digest[..40].to_owned() }
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name == "tokenizer.json"
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    for stream in listener.incoming() {
        if state.ends.load(Ordering::Relaxed) {
            return;
        }
        let state = Arc::clone(state);
        // Detached: a stalled one ends with the server.
        std::thread::spawn(move || stream.map(|stream| serve(stream, &state)));
    }
}

fn serve(mut stream: TcpStream, state: &State) {
    let Some(request) = read_request(&stream) else { return };
    state.requests.lock().unwrap().push(request.clone());
    let path = request.path.as_str();
    if let Some(file) = path.strip_prefix("/storage/") {
        return send_content(&mut stream, state, &request, file);
    }
    let token = state.token.as_ref().map(|token| format!("Bearer {token}"));
    if token.is_some() && request.authorization != token {
        return send(&mut stream, "401 Unauthorized", &[], b"Invalid credentials", &request);
    }
    if path == format!("/api/models/{REPO}/revision/main") {
        let siblings: Vec<_> = state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let listing = serde_json::json!({"id": REPO, "sha": COMMIT, "siblings": siblings});
        return send(&mut stream, "200 OK", &[], listing.to_string().as_bytes(), &request);
    }
    let file = path.strip_prefix(&format!("/{REPO}/resolve/{COMMIT}/"));
    let cached = path.strip_prefix("/api/resolve-cache/");
    let Some((name, content)) = file.or(cached).and_then(|name| state.files.get_key_value(name)) else {
        return send(&mut stream, "404 Not Found", &[], b"Entry not found", &request);
    };
    let tag = format!("\"{}\"", etag(name, content));
    if is_large(name) {
        let (location, size) = (format!("{}/storage/{name}", state.storage), content.len().to_string());
        let headers = [("Location", location.as_str()), ("X-Linked-Etag", &tag), ("X-Linked-Size", &size)];
        send(&mut stream, "302 Found", &headers, b"", &request);
    } else if cached.is_none() {
        let location = format!("/api/resolve-cache/{name}");
        send(&mut stream, "307 Temporary Redirect", &[("Location", &location)], b"", &request);
    } else {
        send(&mut stream, "200 OK", &[("ETag", &tag)], content, &request);
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream.take(1 << 16)).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let mut request = Request { method: words.next()?, path: words.next()?, range: None, authorization: None };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(request)
}

/// Whoever went away has what they wanted.
fn send(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8], request: &Request) {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    if request.method != "HEAD" {
        let _ = stream.write_all(body);
    }
}

fn send_content(stream: &mut TcpStream, state: &State, request: &Request, file: &str) {
    let content = &state.files[file];
    let fault = take_fault(state);
    let range = request.range.as_deref().filter(|_| fault != Some(Fault::IgnoresRange));
    let start = range.map_or(0, |r| r.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
    let mut body = content[start..].to_vec();
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    let content_range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    // The storage's own ETag means nothing to the hub.
    head.push_str("ETag: \"of-the-storage\"\r\n");
    if range.is_some() {
        head.push_str(&format!("Content-Range: {content_range}\r\n"));
    }
    let sent = match fault {
        None | Some(Fault::IgnoresRange) => body.len(),
        Some(Fault::Drops(_) | Fault::Stalls(_)) => body.len() / 2,
        Some(Fault::Silent) => 0,
        Some(Fault::WrongBytes) => {
            body.iter_mut().for_each(|byte| *byte ^= 1);
            body.len()
        }
    };
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    let _ = stream.write_all(&body[..sent]);
    if matches!(fault, Some(Fault::Stalls(_) | Fault::Silent)) {
        let mut waited = Duration::ZERO;
        while waited < STALL && !state.ends.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
            waited += Duration::from_millis(20);
        }
    }
}

fn take_fault(state: &State) -> Option<Fault> {
    let mut fault = state.fault.lock().unwrap();
    let now = *fault;
    *fault = match now {
        Some(Fault::Drops(0 | 1) | Fault::Stalls(0 | 1)) => None,
        Some(Fault::Drops(n)) => Some(Fault::Drops(n - 1)),
        Some(Fault::Stalls(n)) => Some(Fault::Stalls(n - 1)),
        other => other,
    };
    now
}
