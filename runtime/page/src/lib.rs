//! Reports as single HTML pages: no other file, no network, no state outside the page.
//!
//! A page is `page.html` with the style sheet, the scripts of its kind and the report as JSON. The
//! scripts draw everything from the JSON; text of a report is never parsed as markup.

use serde::Serialize;

const TEMPLATE: &str = include_str!("page.html");
/// Style sheet of all pages, for light and dark screens and for print.
pub const STYLE: &str = include_str!("style.css");
/// Elements, tables and charts that the scripts of all kinds use.
const CHART: &str = include_str!("chart.js");

/// Bytes of a page without the script of its kind and its data.
pub const SHARED_BYTES: usize = TEMPLATE.len() + STYLE.len() + CHART.len();

/// Returns the page that `script` draws from `data`, with the functions of `chart.js`.
///
/// # Errors
/// If the data has no JSON form.
pub fn page(title: &str, script: &str, data: &impl Serialize) -> serde_json::Result<String> {
    let data = in_script(&serde_json::to_string(data)?);
    let script = format!("{CHART}{script}");
    let parts = [
        ("{{title}}", in_text(title)),
        ("{{style}}", STYLE.to_owned()),
        ("{{data}}", data),
        ("{{script}}", script),
    ];
    let mut page = String::new();
    let mut rest = TEMPLATE;
    for (place, part) in parts {
        let (before, after) = rest.split_once(place).unwrap_or((rest, ""));
        page += before;
        page += &part;
        rest = after;
    }
    Ok(page + rest)
}

/// Escapes JSON for a `script` element, which ends at `</script` wherever that stands. The two line
/// separators of Unicode are line ends in older JavaScript.
fn in_script(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// Escapes text for an element.
fn in_text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn text_of_a_report_stays_text() {
        let report = json!({"name": "</script><script>{{data}}", "line": "\u{2028}\"'\\"});
        let page = page("a & b </title>", "", &report).expect("a page");
        let (_, rest) = page.split_once("id=\"data\">").expect("the data");
        let (data, _) = rest.split_once("</script>").expect("the end of the data");
        assert!(!data.contains('<') && !data.contains('\u{2028}'), "{data}");
        assert_eq!(serde_json::from_str::<Value>(data).unwrap(), report);
        assert!(page.contains("<title>a &amp; b &lt;/title></title>"));
        assert!(page.contains("default-src 'none'"));
    }
}
