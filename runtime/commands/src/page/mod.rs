//! Reports as HTML pages: the scripts of each kind. See [`edge_lmm_page`].

use edge_lmm::experiment::ExperimentReport;
use edge_lmm::profile::ProfileReport;
use edge_lmm_page::page;
use serde::Serialize;

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

/// Returns the page of the demo.
///
/// # Errors
/// If the report has no JSON form.
pub fn demo(report: &impl Serialize) -> serde_json::Result<String> {
    page("Demo of edge-lmm", include_str!("demo.js"), report)
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
            demo(&Value::Null).expect("a page"),
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
            include_str!("demo.js"),
            include_str!("experiment.js"),
        ] {
            let size = edge_lmm_page::SHARED_BYTES + script.len();
            assert!(size < 60 * 1024, "{size}");
        }
    }
}
