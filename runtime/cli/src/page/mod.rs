//! Reports as single HTML pages: no other file, no network, no state outside the page.
//!
//! A page is `page.html` with the style sheet, the scripts of its kind and the report as JSON. The
//! scripts draw everything from the JSON; text of a report is never parsed as markup.

use edge_lmm::experiment::ExperimentReport;
use edge_lmm::profile::ProfileReport;
use serde::Serialize;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
/// Elements, tables and charts that the scripts of all kinds use.
const CHART: &str = include_str!("chart.js");

/// Returns the page of a profile.
///
/// # Errors
/// If the report has no JSON form.
pub fn profile(report: &ProfileReport) -> serde_json::Result<String> {
    let record = report.environment.record.as_ref();
    let title = match record {
        Some(record) => format!("Profile of {}", record.path),
        None => "Profile".to_owned(),
    };
    page(&title, include_str!("profile.js"), report)
}

/// Returns the page of a comparison of profiles.
///
/// # Errors
/// If the comparison has no JSON form.
pub fn comparison(comparison: &impl Serialize) -> serde_json::Result<String> {
    let script = include_str!("comparison.js");
    page("Comparison of profiles", script, comparison)
}

/// Returns the page of one or several experiments.
///
/// # Errors
/// If a report has no JSON form.
pub fn experiments(title: &str, reports: &[ExperimentReport]) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Experiments<'a> {
        title: &'a str,
        reports: &'a [ExperimentReport],
    }
    let script = include_str!("experiment.js");
    page(title, script, &Experiments { title, reports })
}

fn page(title: &str, script: &str, data: &impl Serialize) -> serde_json::Result<String> {
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
    use edge_lmm::Device;
    use edge_lmm::environment::{Environment, RecordName};
    use edge_lmm::profile::report;
    use serde_json::Value;

    fn hostile() -> ProfileReport {
        let mut environment = Environment::before(Device::Cpu, None);
        environment.record = Some(RecordName {
            path: "</title><script>alert(1)</script> {{data}} {{script}}".to_owned(),
            hash: "\u{2028}\"'\\".to_owned(),
            bytes: 1,
        });
        ProfileReport {
            format: report::FORMAT.to_owned(),
            version: report::VERSION,
            environment,
            roofline: None,
            energy_source: Some("<!--<script>".to_owned()),
            load: Vec::new(),
            runs: Vec::new(),
        }
    }

    fn experiment() -> ExperimentReport {
        ExperimentReport {
            format: edge_lmm::experiment::FORMAT.to_owned(),
            version: edge_lmm::experiment::VERSION,
            experiment: "x".to_owned(),
            question: "</SCRIPT >?".to_owned(),
            environments: Vec::new(),
            parameters: Default::default(),
            table: Default::default(),
            charts: Vec::new(),
            notes: vec!["<b>".to_owned()],
            failures: Vec::new(),
        }
    }

    /// Returns the JSON of a page as a browser finds it.
    fn data(page: &str) -> Value {
        let (_, rest) = page.split_once("id=\"data\">").expect("the data");
        let (json, _) = rest.split_once("</script>").expect("the end of the data");
        assert!(!json.contains('<') && !json.contains('\u{2028}'), "{json}");
        serde_json::from_str(json).expect("the data is JSON")
    }

    #[test]
    fn text_of_a_report_stays_text() {
        let report = hostile();
        let page = profile(&report).expect("a page");
        assert_eq!(data(&page), serde_json::to_value(&report).unwrap());
        assert_eq!(page.matches("</script").count(), 2, "{page}");
        assert_eq!(page.matches("<script").count(), 2, "{page}");
        assert!(page.contains("<title>Profile of &lt;/title>&lt;script>"));

        let reports = [experiment(), experiment()];
        let page = experiments("a & b </title>", &reports).expect("a page");
        assert_eq!(data(&page)["reports"][1]["question"], "</SCRIPT >?");
        assert!(page.contains("<title>a &amp; b &lt;/title></title>"));
    }

    #[test]
    fn pages_refer_to_nothing_outside() {
        let mut report = hostile();
        report.environment.record = None;
        let pages = [
            profile(&report).expect("a page"),
            experiments("x", &[experiment()]).expect("a page"),
            comparison(&Value::Null).expect("a page"),
        ];
        for page in pages {
            for reference in [
                "http:",
                "https:",
                "url(",
                "@import",
                "import(",
                "src=",
                "fetch(",
                "XMLHttp",
                "<link",
                "<iframe",
                "WebSocket",
                "sendBeacon",
                "Worker(",
            ] {
                assert!(!page.contains(reference), "{reference}");
            }
            assert!(page.contains("default-src 'none'"));
        }
    }

    #[test]
    fn scripts_parse_no_markup_and_no_code() {
        let page = profile(&hostile()).expect("a page");
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
        ] {
            assert!(!page.contains(word), "{word}");
        }
    }

    #[test]
    fn pages_are_small() {
        for script in [
            include_str!("profile.js"),
            include_str!("comparison.js"),
            include_str!("experiment.js"),
        ] {
            let size = TEMPLATE.len() + STYLE.len() + CHART.len() + script.len();
            assert!(size < 60 * 1024, "{size}");
        }
    }
}
