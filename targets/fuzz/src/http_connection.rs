//! Fuzz target for connections of the HTTP server.

use std::sync::LazyLock;

use edge_lmm_commands::fuzz::Scripted;
use serde_json::{Value, json};

use crate::Target;
use crate::errors;
use crate::mutate::Form;

/// The bytes of a connection: heads, chunked bodies and several requests, after a byte that chooses a
/// server with a key (`k`) or one that checks names. The requests are answered by the embedded model.
pub const HTTP_CONNECTION: Target = Target {
    name: "http_connection",
    form: Form::Words(&[
        b"\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n",
        b"HEAD /health HTTP/1.1\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\n",
        b"POST /v1/completions HTTP/1.1\r\n",
        b"GET /v1/models/demo?a=b HTTP/1.1\r\n",
        b"GET /metrics HTTP/1.0\r\n",
        b"Host: board.example.org\r\n",
        b"Host: [::1]:80\r\n",
        b"Authorization: Bearer sesame\r\n",
        b"Content-Type: application/json\r\n",
        b"Content-Type: multipart/form-data; boundary=x\r\n",
        b"Content-Length: ",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"Upgrade: websocket\r\n",
        b"X-Request-Id: a-1\r\n",
        b"ffffffffffffffff\r\n",
        b"0\r\n\r\n",
        b"\"stream\": true",
        b"\"edge_lmm\": {\"progress\": true}",
        b"\xff",
    ]),
    seeds,
    run: |input| {
        let Some((first, input)) = input.split_first() else {
            return;
        };
        let server = match first {
            b'k' => &CLOSED,
            _ => &OPEN,
        };
        check_replies(&server.replies(input));
    },
};

static OPEN: LazyLock<Scripted> = LazyLock::new(|| start(None));
static CLOSED: LazyLock<Scripted> = LazyLock::new(|| start(Some("sesame")));

fn start(key: Option<&str>) -> Scripted {
    Scripted::start(key).expect("a server")
}

fn seeds() -> Vec<Vec<u8>> {
    let post = |path: &str, head: &str, body: &Value| {
        let body = body.to_string();
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{head}");
        (head, body)
    };
    let plain = |path, head: &str, body: &Value| {
        let (head, body) = post(path, head, body);
        format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    let hi = json!({ "messages": [{ "role": "user", "content": "a" }], "max_tokens": 1 });
    let streamed = json!({ "messages": [{ "role": "user", "content": "a" }], "stream": true,
        "stream_options": { "include_usage": true }, "edge_lmm": { "progress": true },
        "logprobs": true, "top_logprobs": 2, "temperature": 1.5 });
    let formed = json!({ "prompt": "a", "response_format": { "type": "regex", "pattern": "[ab]+" },
        "stop": ["b"], "stream": true });
    let tools = json!({ "messages": [{ "role": "user", "content": "a" }], "tool_choice": "required",
        "tools": [{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }] });
    let image = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
    let shown = json!({ "messages": [{ "role": "user", "content": [
        { "type": "image_url", "image_url": { "url": image } }, { "type": "text", "text": "a" }] }] });
    let (head, body) = post("/v1/completions", "", &formed);
    let (start, end) = body.split_at(9);
    let chunked = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n9\r\n{start}\r\n{:x};a=b\r\n{end}\r\n0\r\nTrailer: a\r\n\r\n",
        end.len()
    );
    let chat = "/v1/chat/completions";
    let gets = "GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: [::1]\r\n\r\n\
                HEAD /health HTTP/1.1\r\n\r\nGET /metrics HTTP/1.1\r\nX-Request-Id: a-1\r\nConnection: close\r\n\r\n";
    let form = "--x\r\nContent-Disposition: form-data; name=\"f\"\r\n\r\na\r\n--x--\r\n";
    let upload = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: board.example.org\r\n\
         Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    [
        format!("o{}{}", plain(chat, "", &hi), plain(chat, "", &streamed)),
        format!("o{chunked}"),
        format!("o{}", plain(chat, "Expect: 100-continue\r\n", &tools)),
        format!(
            "k{}",
            plain(chat, "Authorization: Bearer sesame\r\n", &shown)
        ),
        format!("k{}", plain(chat, "Authorization: Bearer other\r\n", &hi)),
        format!("o{gets}"),
        format!("k{upload}{gets}"),
    ]
    .map(String::into_bytes)
    .into()
}

/// Checks that the output of the server is a sequence of replies. None blames the server.
fn check_replies(output: &[u8]) {
    let mut rest = output;
    while !rest.is_empty() {
        let end = find(rest, b"\r\n\r\n").expect("the end of a head");
        let head = str::from_utf8(&rest[..end]).expect("a head is text");
        rest = &rest[end + 4..];
        let (line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .or(line.strip_prefix("HTTP/1.0 "));
        let status = status.and_then(|status| status.get(..3)?.parse::<u16>().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {line:?}"));
        let body = body(headers, &mut rest);
        assert!(
            (100..500).contains(&status),
            "{head}: {}",
            String::from_utf8_lossy(&body)
        );
        if !body.is_empty() {
            check_body(headers, &body);
        }
    }
}

fn header<'a>(headers: &'a str, name: &str) -> Option<&'a str> {
    headers.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Takes the body of a reply; that to `HEAD` has none.
fn body(headers: &str, rest: &mut &[u8]) -> Vec<u8> {
    if rest.is_empty() || rest.starts_with(b"HTTP/1.") {
        return Vec::new();
    }
    if let Some(length) = header(headers, "content-length") {
        let length: usize = length.parse().expect("a length");
        let (body, left) = rest.split_at_checked(length).expect("a whole body");
        *rest = left;
        return body.to_vec();
    }
    if header(headers, "transfer-encoding") != Some("chunked") {
        // Until the end of the connection.
        return std::mem::take(rest).to_vec();
    }
    let mut body = Vec::new();
    loop {
        let end = find(rest, b"\r\n").expect("the size of a chunk");
        let size = str::from_utf8(&rest[..end]).expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a size");
        let (chunk, left) = rest[end + 2..].split_at_checked(size).expect("a chunk");
        *rest = left.strip_prefix(b"\r\n").expect("the end of a chunk");
        body.extend_from_slice(chunk);
        if size == 0 {
            return body;
        }
    }
}

/// Checks that errors are on one line, and that events of a stream are JSON with an end.
fn check_body(headers: &str, body: &[u8]) {
    let kind = header(headers, "content-type").expect("a type");
    let text = str::from_utf8(body).expect("a body is text");
    match kind {
        "application/json" => {
            let reply: Value = serde_json::from_str(text).expect("JSON");
            if let Some(message) = reply["error"]["message"].as_str() {
                errors::check_line(message);
            }
        }
        "text/event-stream" => {
            let events: Vec<&str> = text.split_terminator("\n\n").collect();
            assert_eq!(events.last(), Some(&"data: [DONE]"), "no end: {text}");
            for event in &events[..events.len() - 1] {
                let data = event.strip_prefix("data: ");
                let data = data.unwrap_or_else(|| panic!("no event: {event}"));
                serde_json::from_str::<Value>(data).expect("JSON");
            }
        }
        _ => {}
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the status of each reply to an input.
    fn statuses(input: &[u8]) -> Vec<String> {
        let server = if input[0] == b'k' { &CLOSED } else { &OPEN };
        let output = String::from_utf8(server.replies(&input[1..])).expect("text");
        let replies = output.match_indices("HTTP/1.1 ");
        let status = |(at, start): (usize, &str)| output[at + start.len()..][..3].to_owned();
        replies.map(status).collect()
    }

    #[test]
    fn seeds_are_answered() {
        let statuses: Vec<Vec<String>> = seeds().iter().map(|seed| statuses(seed)).collect();
        let expected: [&[&str]; 7] = [
            &["200", "200"],
            &["200"],
            &["100", "200"],
            &["200"],
            &["401"],
            &["200", "200", "200", "200"],
            &["401", "200", "401", "200", "401"],
        ];
        assert_eq!(statuses, expected);
    }
}
