//! The page at `/`: a chat with images, sound and the camera, in one file without resources.

use std::hash::{BuildHasher, RandomState};

use hyper::Response;
use hyper::header::{
    CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, X_FRAME_OPTIONS,
};

use super::reply::{self, Reply};

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Returns the page. Its script and style carry a number that changes with each reply, so that the
/// browser runs no other ones.
pub fn page() -> Response<Reply> {
    let nonce = nonce();
    let style = edge_lmm_page::STYLE.to_owned() + STYLE;
    let page = TEMPLATE
        .replace("{{nonce}}", &nonce)
        .replace("{{style}}", &style)
        .replace("{{script}}", SCRIPT);
    let mut response = reply::text("text/html; charset=utf-8", page);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data: blob:; media-src data: blob:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    );
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let devices = HeaderValue::from_static("camera=(self), microphone=(self), geolocation=()");
    headers.insert(HeaderName::from_static("permissions-policy"), devices);
    response
}

/// Returns 128 bits that clients cannot guess.
fn nonce() -> String {
    // The keys come from the system's random numbers.
    let half = || RandomState::new().hash_one(0);
    format!("{:016x}{:016x}", half(), half())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_else() {
        let sources = [TEMPLATE, STYLE, SCRIPT, edge_lmm_page::STYLE].concat();
        for word in [
            "http://",
            "https://",
            "src=\"",
            "@import",
            "url(",
            "innerHTML",
            "style=\"",
        ] {
            assert!(!sources.contains(word), "{word}");
        }
        assert!(!SCRIPT.contains("</script") && !SCRIPT.contains("{{"));
    }
}
