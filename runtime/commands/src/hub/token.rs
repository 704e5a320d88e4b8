//! The access token of the hub.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, ensure};

/// Returns the token in `HF_TOKEN`, or in the file that the hub's own tools write: `HF_TOKEN_PATH`,
/// `HF_HOME/token`, or `huggingface/token` below `XDG_CACHE_HOME` or `~/.cache`. `None` without one.
///
/// # Errors
/// If the file exists and cannot be read, or the token has characters that no token has.
pub fn find(variable: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<Option<String>> {
    let (token, origin) = match variable("HF_TOKEN").filter(|token| !token.is_empty()) {
        Some(token) => (token.to_string_lossy().into_owned(), "HF_TOKEN".to_owned()),
        None => {
            let Some(path) = file(&variable).filter(|path| path.is_file()) else {
                return Ok(None);
            };
            let origin = path.display().to_string();
            let token = std::fs::read_to_string(&path);
            (
                token.with_context(|| format!("cannot read {origin}"))?,
                origin,
            )
        }
    };
    let token = token.trim();
    ensure!(
        token.chars().all(|c| c.is_ascii_graphic()),
        "the token of the Hugging Face hub in {origin} has invalid characters"
    );
    Ok((!token.is_empty()).then(|| token.to_owned()))
}

/// Returns the path of the token file.
fn file(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| {
        variable(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    if let Some(file) = path("HF_TOKEN_PATH") {
        return Some(file);
    }
    let home = match path("HF_HOME") {
        Some(home) => home,
        None => {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
            cache?.join("huggingface")
        }
    };
    Some(home.join("token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_wins_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = folder.path().as_os_str().to_owned();
        let found = |token: &str| {
            find(|name| match name {
                "HF_TOKEN" => Some(token.into()),
                "HF_HOME" => Some(home.clone()),
                _ => None,
            })
        };
        assert_eq!(
            found("hf_variable").unwrap().as_deref(),
            Some("hf_variable")
        );
        assert_eq!(found("").unwrap().as_deref(), Some("hf_file"));
        assert!(
            found("a\r\nHost: b")
                .unwrap_err()
                .to_string()
                .contains("HF_TOKEN")
        );
        assert_eq!(find(|_| None).unwrap(), None);
    }
}
