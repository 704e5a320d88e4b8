//! Media at addresses of allowed hosts.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};

use crate::client::{Reply, Server, demo};
use crate::{QUESTION, text};

/// Starts a server of images. Returns its port.
fn images() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a connection");
            std::thread::spawn(move || serve(stream, port));
        }
    });
    port
}

fn serve(mut stream: TcpStream, port: u16) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
    let first = lines.next().and_then(Result::ok).unwrap_or_default();
    while lines
        .next()
        .and_then(Result::ok)
        .is_some_and(|line| !line.is_empty())
    {}
    let path = first.split(' ').nth(1).unwrap_or_default();
    let redirect =
        |to: &str| format!("HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {to}\r\n");
    let image = std::fs::read(demo("shapes.png")).expect("the image");
    let (head, body) = match path {
        "/shapes.png" => (
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", image.len()),
            image,
        ),
        "/text" => (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n".to_owned(),
            b"hi".to_vec(),
        ),
        "/moved" => (redirect("/shapes.png"), vec![]),
        "/loop" => (redirect("/loop"), vec![]),
        "/other" => (
            redirect(&format!("http://localhost:{port}/shapes.png")),
            vec![],
        ),
        "/metadata" => (redirect("http://169.254.169.254/latest"), vec![]),
        "/file" => (redirect("file:///etc/passwd"), vec![]),
        "/large" => (
            "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n".to_owned(),
            vec![],
        ),
        "/endless" => ("HTTP/1.1 200 OK\r\n".to_owned(), vec![]),
        "/short" => (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n".to_owned(),
            vec![0],
        ),
        _ => (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n".to_owned(),
            vec![],
        ),
    };
    let head = format!("{head}Connection: close\r\n\r\n");
    // A client that goes away is its own affair.
    let mut sent = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(&body));
    while path == "/endless" && sent.is_ok() {
        sent = stream.write_all(&[0; 1 << 16]);
    }
}

fn ask(server: &Server, url: &str) -> Reply {
    let image = json!({ "type": "image_url", "image_url": { "url": url } });
    server.chat(&json!({ "messages": [{ "role": "user", "content": [image, text(QUESTION)] }] }))
}

fn error(reply: &Reply) -> Value {
    assert_eq!(reply.status, 400, "{reply:?}");
    reply.json()["error"].clone()
}

#[test]
fn images_of_allowed_hosts_are_read() {
    let port = images();
    let server = Server::start(&["--allow-url-host", &format!("127.0.0.1:{port}")]);
    let at = |path: &str| format!("http://127.0.0.1:{port}{path}");
    for url in [
        at("/shapes.png"),
        at("/moved"),
        at("/shapes.png#part"),
        at("/shapes.png").replace("http", "HTTP"),
    ] {
        let reply = ask(&server, &url);
        assert_eq!(
            (reply.status, &*reply.text()),
            (200, "two"),
            "{url}: {reply:?}"
        );
    }
    for (url, word) in [
        (at("/other"), "redirects to another host"),
        (at("/metadata"), "redirects to another host"),
        (at("/file"), "invalid address"),
        (
            format!("http://localhost:{port}/shapes.png"),
            "not among the hosts",
        ),
        (
            "http://127.0.0.1/shapes.png".to_owned(),
            "not among the hosts",
        ),
        (format!("http://127.0.0.1.:{port}/"), "invalid host"),
        (format!("http://user@127.0.0.1:{port}/"), "names a user"),
        (format!("http://127.1:{port}/shapes.png"), "invalid host"),
        (
            format!("http://0x7f000001:{port}/shapes.png"),
            "invalid host",
        ),
        (
            format!("http://2130706433:{port}/shapes.png"),
            "invalid host",
        ),
        (
            format!("http://[::ffff:127.0.0.1]:{port}/shapes.png"),
            "not among the hosts",
        ),
        (format!("http://127.0.0.1:{port}@evil.org/"), "names a user"),
        ("file:///etc/passwd".to_owned(), "neither an address"),
        ("/etc/passwd".to_owned(), "neither an address"),
    ] {
        let error = error(&ask(&server, &url));
        assert_eq!(error["code"], "address_refused", "{url}: {error}");
        assert!(
            error["message"].as_str().expect("a text").contains(word),
            "{url}: {error}"
        );
    }
    for (path, word) in [
        ("/large", "larger than 32 MiB"),
        ("/endless", "larger than 32 MiB"),
        ("/missing", "status 404"),
        ("/loop", "more than 3 times"),
        ("/short", "cannot read"),
    ] {
        let error = error(&ask(&server, &at(path)));
        assert_eq!(error["code"], "address_unreadable", "{path}: {error}");
        assert!(
            error["message"].as_str().expect("a text").contains(word),
            "{path}: {error}"
        );
    }
    let damaged = error(&ask(&server, &at("/text")));
    assert_eq!(damaged["code"], "invalid_value", "{damaged}");
    let image = json!({ "type": "image_url", "image_url": { "url": at("/shapes.png") } });
    let many = json!({ "messages": [{ "role": "user", "content": vec![image; 9] }] });
    let many = error(&server.chat(&many));
    assert!(
        many["message"]
            .as_str()
            .expect("a text")
            .contains("9 addresses"),
        "{many}"
    );
    // Encrypted addresses of a host without encryption.
    let reply = error(&ask(&server, &at("/shapes.png").replace("http", "https")));
    assert!(
        reply["code"]
            .as_str()
            .expect("a text")
            .starts_with("address_"),
        "{reply}"
    );
}
