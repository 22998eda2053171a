//! What is shipped for Prometheus and Grafana, held against the metrics, by their names and by a running Prometheus.
//!
//! Absent: how Grafana draws it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rowd::metrics::table::ALL;
use rowd_tests::tool;
use rowd_tests::wait;
use serde_json::Value;

use super::{busy, http, scraped_at};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_owned()
}

fn shipped(name: &str) -> String {
    fs::read_to_string(root().join("contrib/prometheus").join(name)).unwrap()
}

/// Title and expression of everything that the dashboard draws.
fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&shipped("dashboard.json")).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            found.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

/// Name and expression of every alert.
fn alerts() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut name = "";
    let text = shipped("alerts.yml");
    for line in text.lines().map(|line| line.trim().trim_start_matches("- ")) {
        if let Some(alert) = line.strip_prefix("alert: ") {
            name = alert;
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            found.push((name.to_owned(), expression.to_owned()));
        }
    }
    assert!(found.len() > 8, "{found:?}");
    found
}

/// The metrics that an expression names.
fn named(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("rowd_"))
}

/// Promise: what is shipped names no metric that does not exist, and says something of every subject.
#[test]
fn dashboard_and_alerts_name_metrics_that_exist() {
    let samples: BTreeSet<String> =
        ALL.iter().flat_map(rowd::metrics::table::Metric::samples).collect();
    let mut used = BTreeSet::new();
    for (title, expression) in panels().into_iter().chain(alerts()) {
        for name in named(&expression) {
            assert!(samples.contains(name), "{title}: there is no {name}");
            used.insert(name.to_owned());
        }
    }
    for subject in ["disk", "pool", "journal", "checkpoint", "map", "reclaim", "scrub", "copies"] {
        let prefix = format!("rowd_{subject}");
        assert!(used.iter().any(|name| name.starts_with(&prefix)), "nothing about {subject}");
    }
}

/// A running Prometheus; it ends with its owner.
struct Prometheus {
    child: Child,
    address: String,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("prometheus: {error}");
        }
    }
}

impl Prometheus {
    /// Scrapes `target` every second, with the alert rules that are shipped.
    #[track_caller]
    fn start(home: &Path, target: &str) -> Prometheus {
        fs::write(home.join("alerts.yml"), shipped("alerts.yml")).unwrap();
        let config = shipped("prometheus.yml").replace("127.0.0.1:9750", target);
        let fast = "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n";
        fs::write(home.join("prometheus.yml"), format!("{fast}{config}")).unwrap();
        let log = fs::File::create(home.join("prometheus.log")).unwrap();
        let child = tool::command("prometheus")
            .arg(format!("--config.file={}", home.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut started = Prometheus { child, address: String::new() };
        started.address = wait::until("prometheus to listen", || {
            let log = fs::read_to_string(home.join("prometheus.log")).ok()?;
            let line = log.lines().find(|line| line.contains("msg=\"Listening on\""))?.to_owned();
            let address = line.rsplit_once("address=")?.1.trim().to_owned();
            (!address.ends_with(":0")).then_some(address)
        });
        wait::until("prometheus to be ready", || {
            let (head, _) = http(&started.address, "GET /-/ready");
            head.contains(" 200 ").then_some(())
        });
        started
    }

    fn get(&self, path: &str) -> Value {
        let (head, body) = http(&self.address, &format!("GET {path}"));
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {head}\n{body}"))
    }

    /// How many series an expression has now.
    #[track_caller]
    fn series(&self, expression: &str) -> usize {
        let query: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={query}"));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().map_or(0, Vec::len)
    }
}

/// Promise: a Prometheus of the distribution scrapes the daemon, finds every metric that the dashboard draws, and
/// evaluates every alert; a healthy daemon raises none that is critical.
#[test]
fn a_running_prometheus_finds_everything_that_is_drawn() {
    let daemon = busy("[metrics]\nlisten = \"127.0.0.1:0\"");
    let home = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(home.path(), &scraped_at(&daemon));
    for (title, expression) in panels() {
        let expression = expression
            .replace("$instance", ".*")
            .replace("$disk", ".*")
            .replace("$__rate_interval", "30s");
        wait::until(&format!("{title}: {expression}"), || {
            (prometheus.series(&expression) > 0).then_some(())
        });
    }
    let rules = wait::until("all rules to be evaluated", || {
        let rules = prometheus.get("/api/v1/rules")["data"]["groups"][0]["rules"].clone();
        rules.as_array()?.iter().all(|rule| rule["health"] == "ok").then_some(rules)
    });
    let rules = rules.as_array().unwrap();
    assert_eq!(rules.len(), alerts().len());
    let firing: Vec<&Value> = rules.iter().filter(|rule| rule["state"] == "firing").collect();
    assert!(firing.is_empty(), "a healthy daemon: {firing:?}");
}

/// Promise: the checker of the distribution finds nothing wrong in the rules.
#[test]
fn promtool_accepts_the_alert_rules() {
    let rules = root().join("contrib/prometheus/alerts.yml").display().to_string();
    tool::run("promtool", &["check", "rules", &rules]).ok().says(&["rules found"]);
}
