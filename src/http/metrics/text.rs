//! Version 0.0.4 of the text format of Prometheus. The crate prometheus-client writes OpenMetrics
//! only, in which the names of counters are declared without their suffix.

use std::fmt::Write as _;

use overlay_engine::metrics::{Family, Kind, Series};
use overlay_types::escape::lines;

/// Returns the text of the families. Every name begins with `prefix` and an underscore.
pub(super) fn encode(prefix: &str, families: &[Family]) -> String {
    let mut text = String::new();
    for family in families {
        let (kind, suffix) = match family.kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge | Kind::Seconds => ("gauge", ""),
        };
        let name = format!("{prefix}_{}{suffix}", family.name);
        let help = family.help.replace('\\', r"\\").replace('\n', r"\n");
        // Writing to memory does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for Series { labels, value } in &family.series {
            let value = family.kind.shown(*value);
            let labels: Vec<String> = labels.iter().map(label).collect();
            let _ = match labels.as_slice() {
                [] => writeln!(text, "{name} {value}"),
                labels => writeln!(text, "{name}{{{}}} {value}", labels.join(",")),
            };
        }
    }
    text
}

fn label((name, value): &(&'static str, String)) -> String {
    let value = lines(value).to_string();
    let value = value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
    format!("{name}=\"{value}\"")
}
