//! Fuzz targets for parsers of the command.

use edge_lmm_commands::fuzz;

use crate::memory_file::MemoryFile;
use crate::mutate::{Form, parts};
use crate::{Target, errors};

/// A file with options of the server.
pub const SERVER_OPTIONS: Target = Target {
    name: "server_options",
    form: Form::Words(&[
        b"max-tokens = ",
        b"http = \"127.0.0.1:8080\"",
        b"allow-host = [\"a\"]",
        b"no-files = true",
        b"api-key = \"k\"",
        b"reduce = \"merge:0.5\"",
        b"conversation-memory = \"1GiB\"",
        b"first-token-budget = 100",
        b"model = \"m.bpk\"",
        b"\"\"\"",
        b"[",
        b"]",
        b"= ",
        b"\n",
        b"1e999",
        b"2020-01-01",
        b"--",
    ]),
    seeds: || {
        [
            "model = \"m.bpk\"\nhttp = \"0.0.0.0:8080\"\napi-key-file = \"/key\"\nno-files = true\n\
             allow-host = [\"board.example.org\"]\nmax_tokens = 256\nframes = \"keyframes:4\"\n",
            "socket = '/run/s'\nsocket-mode = '600'\nthreads = 2\nreduce = 'merge:0.5,diverse:0.25'\n\
             speculate = 'auto'\nallow-url-host = ['a.org:80', '[::1]']\nimage-tokens = '4..16'\n",
        ]
        .map(|text| text.as_bytes().to_vec())
        .into()
    },
    run: |input| {
        let file = MemoryFile::new(input);
        if let Err(error) = fuzz::server_options(&file.path()) {
            errors::check(&format!("{error:#}"));
        }
    },
};

/// Two profiles that `edge-lmm profile --compare` reads.
pub const PROFILES: Target = Target {
    name: "profiles",
    form: Form::Json(&[b"null", b"1e308", b"-1", b"\"*\"", b"{}", b"[]", b","]),
    seeds: || {
        let profile = include_str!("../data/profile.json");
        let slower = profile.replace("\"mean\":", "\"mean\":1");
        vec![format!("{profile}\0{slower}").into_bytes()]
    },
    run: |input| {
        let [before, after] = parts(input).map(String::from_utf8_lossy);
        for (before, after) in [(&before, &after), (&after, &before), (&before, &before)] {
            match fuzz::compare_profiles(before, after) {
                Ok(tables) => assert!(tables.starts_with("baseline: ")),
                Err(error) => errors::check(&format!("{error:#}")),
            }
        }
    },
};

/// An address that a request names, and the place that a redirect leads to.
pub const WEB_ADDRESS: Target = Target {
    name: "web_address",
    form: Form::Words(&[
        b"http://",
        b"https://",
        b"HTTP://",
        b"//",
        b"@",
        b":80",
        b":0",
        b"[::1]",
        b"0x7f.1",
        b"127.1",
        b"%2e",
        b"..",
        b"?",
        b"#",
        b"\\",
        b"\0",
        b"\xc3\xa9",
    ]),
    seeds: || {
        [
            "http://images.example.com:81/a/b.png?c=d\0/e",
            "https://192.168.1.5\0http://a.b/",
            "http://[2001:db8::1]:8080/\0https://[::1]/x#y",
        ]
        .map(|text| text.as_bytes().to_vec())
        .into()
    },
    run: |input| {
        let [address, location] = parts(input).map(String::from_utf8_lossy);
        match fuzz::web_address(&address, &location) {
            Err(error) => errors::check_line(&error.to_string()),
            Ok((shown, redirected)) => {
                let scheme = shown.split_once("://").expect("a scheme").0;
                let again = fuzz::web_address(&shown, "/").expect("its own form is valid");
                assert_eq!(again.0, shown, "another address");
                if let Some(redirected) = redirected {
                    let is_kept = redirected.starts_with("https://") || scheme == "http";
                    assert!(is_kept, "{shown} leads to {redirected} without encryption");
                }
            }
        }
    },
};
