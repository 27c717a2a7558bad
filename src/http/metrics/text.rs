//! Version 0.0.4 of the text format of Prometheus. The crate prometheus-client writes OpenMetrics
//! only, in which the names of counters are declared without their suffix.

use std::fmt::Write as _;

use overlay_engine::metrics::{Kind, Series};
use overlay_types::escape::lines;

use super::{BUILD_INFO, BUILD_INFO_HELP, Families, build_labels};

/// Returns the text of all metrics.
pub(super) fn encode(all: &Families) -> String {
    let mut text = String::new();
    for family in &all.families {
        let (kind, suffix) = match family.kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge | Kind::Seconds => ("gauge", ""),
        };
        let name = all.name(family.name) + suffix;
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
    encode_histograms(all, &mut text);
    let labels = build_labels().map(|(name, value)| label(&(name, value.to_owned()))).join(",");
    let _ = writeln!(
        text,
        "# HELP {BUILD_INFO} {BUILD_INFO_HELP}\n# TYPE {BUILD_INFO} gauge\n{BUILD_INFO}{{{labels}}} 1"
    );
    text
}

fn encode_histograms(all: &Families, text: &mut String) {
    for histogram in &all.histograms {
        let name = all.name(histogram.name);
        let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} histogram", histogram.help);
        let mut total = 0;
        for (bound, count) in histogram.buckets() {
            total += count;
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let sum = histogram.sum.as_secs_f64();
        let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {total}");
    }
}

fn label((name, value): &(&'static str, String)) -> String {
    let value = lines(value).to_string();
    let value = value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
    format!("{name}=\"{value}\"")
}
