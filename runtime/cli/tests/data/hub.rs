//! A server that answers like the Hugging Face hub.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::json;

/// A repository with files, on a local port until the process ends.
pub struct Hub {
    pub endpoint: String,
}

impl Hub {
    pub fn new(repository: &str, token: &str, files: Vec<(&'static str, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let (repository, token) = (repository.to_owned(), format!("Bearer {token}"));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.expect("a connection"), &repository, &token, &files);
            }
        });
        Self { endpoint }
    }
}

/// Answers one request.
fn answer(mut stream: TcpStream, repository: &str, token: &str, files: &[(&str, Vec<u8>)]) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
    let mut next = || lines.next().and_then(Result::ok).unwrap_or_default();
    let request = next();
    let mut headers = Vec::new();
    loop {
        let line = next();
        if line.is_empty() {
            break;
        }
        headers.push(line);
    }
    let header = |name: &str| {
        let mut values = headers.iter().filter_map(|line| line.split_once(": "));
        let value = values.find(|(found, _)| found.eq_ignore_ascii_case(name));
        value.map(|(_, value)| value).unwrap_or_default()
    };
    let path = request.split(' ').nth(1).unwrap_or_default();
    let listing = format!("/api/datasets/{repository}/revision/main");
    let prefix = format!("/datasets/{repository}/resolve/main/");
    let file = path.strip_prefix(&prefix);
    let file = file.and_then(|name| files.iter().find(|(file, _)| *file == name));
    let reply = match file {
        _ if header("authorization") != token => ("401 Unauthorized", String::new(), Vec::new()),
        Some((_, content)) => {
            let range = header("range").trim_start_matches("bytes=");
            let (start, end) = range.split_once('-').unwrap_or(("0", ""));
            let start: usize = start.parse().expect("a number");
            let end = end.parse().map_or(content.len(), |end: usize| end + 1);
            let part = content[start..end].to_vec();
            let range = format!(
                "Content-Range: bytes {start}-{}/{}\r\nETag: \"e1\"\r\nX-Repo-Commit: c1\r\n",
                end - 1,
                content.len()
            );
            ("206 Partial Content", range, part)
        }
        None if path == listing => {
            let names: Vec<_> = files
                .iter()
                .map(|(name, _)| json!({"rfilename": name}))
                .collect();
            let info = json!({"sha": "c1", "siblings": names});
            ("200 OK", String::new(), info.to_string().into_bytes())
        }
        None => ("404 Not Found", String::new(), Vec::new()),
    };
    let (status, extra, body) = reply;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n",
        body.len()
    );
    // A client that goes away is its own affair.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(&body));
}
