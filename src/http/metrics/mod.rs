//! The metrics in the two text formats that Prometheus reads: its own, and OpenMetrics.

mod text;

use std::fmt;

use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use overlay_engine::metrics::{Catalogue, Family, Histogram, Kind, Series, Snapshot};
use overlay_types::escape::lines;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{BodyFormat, Format, Request, Response, error, weighted_entries};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Selects the format by the header `Accept`. The text format of Prometheus is the default, since
/// every scraper reads it.
pub(super) fn negotiate(request: &Request) -> Format {
    let body = if prefers_openmetrics(request.headers()) {
        BodyFormat::OpenMetrics
    } else {
        BodyFormat::PrometheusText
    };
    Format::new(body, request)
}

/// Returns whether the client lists OpenMetrics, with no smaller weight than the text format.
fn prefers_openmetrics(headers: &HeaderMap) -> bool {
    let entries = weighted_entries(headers, &ACCEPT);
    let weight = |token: &str, versions: &[&str]| {
        let has_version = |version: &Option<String>| {
            version.as_ref().is_none_or(|version| versions.contains(&version.as_str()))
        };
        let listed = entries.iter().filter(|entry| entry.is(token) && has_version(&entry.version));
        listed.map(|entry| entry.weight).reduce(f32::max)
    };
    let text = weight("text/plain", &["0.0.4"])
        .or_else(|| weight("text/*", &[]))
        .or_else(|| weight("*/*", &[]));
    let openmetrics = weight("application/openmetrics-text", &["0.0.1", "1.0.0"]);
    openmetrics.is_some_and(|openmetrics| openmetrics > 0.0 && openmetrics >= text.unwrap_or(0.0))
}

/// The metric whose labels describe the program. Its name is the same for masters and agents.
const BUILD_INFO: &str = "mesos_overlay_build_info";
const BUILD_INFO_HELP: &str = "1, with the version of the program as label.";

/// Returns the response with all metrics of a state machine.
pub(super) fn render<S>(
    catalogue: &Catalogue<S>,
    snapshot: &Snapshot<S>,
    format: &Format,
) -> Response {
    let families = Families {
        prefix: catalogue.prometheus_prefix,
        families: snapshot.families(catalogue),
        histograms: snapshot.histograms.clone(),
    };
    if format.body == BodyFormat::PrometheusText {
        let text = text::encode(&families);
        return format.respond(StatusCode::OK, PROMETHEUS_TEXT, text.into_bytes());
    }
    let mut registry = Registry::default();
    registry.register_collector(Box::new(families));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => format.respond(StatusCode::OK, OPEN_METRICS, text.into_bytes()),
        // Writing to memory does not fail.
        Err(reason) => error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
    }
}

/// All metrics of a state machine. Every name but that of the build begins with `prefix` and an
/// underscore.
#[derive(Debug)]
struct Families {
    prefix: &'static str,
    families: Vec<Family>,
    histograms: Vec<Histogram>,
}

impl Families {
    fn name(&self, name: &str) -> String {
        format!("{}_{name}", self.prefix)
    }
}

/// Returns the labels of the build.
const fn build_labels() -> [(&'static str, &'static str); 1] {
    [("version", env!("CARGO_PKG_VERSION"))]
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.families {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge | Kind::Seconds => MetricType::Gauge,
            };
            let name = self.name(family.name);
            let mut metric = encoder.encode_descriptor(&name, family.help, None, kind)?;
            match family.series.as_slice() {
                [only] if only.labels.is_empty() => encode_value(family.kind, only.value, metric)?,
                series => {
                    for Series { labels, value } in series {
                        // The encoder escapes line breaks in the way of OpenMetrics.
                        let visible = labels.iter().map(|(name, value)| (*name, lines(value)));
                        let labels: Vec<_> = visible.collect();
                        encode_value(family.kind, *value, metric.encode_family(&labels)?)?;
                    }
                }
            }
        }
        for histogram in &self.histograms {
            let (name, kind) = (self.name(histogram.name), MetricType::Histogram);
            let mut metric = encoder.encode_descriptor(&name, histogram.help, None, kind)?;
            let buckets: Vec<_> = histogram.buckets().collect();
            let (sum, count) = (histogram.sum.as_secs_f64(), histogram.count());
            metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        let gauge = MetricType::Gauge;
        let mut build = encoder.encode_descriptor(BUILD_INFO, BUILD_INFO_HELP, None, gauge)?;
        encode_value(Kind::Gauge, 1, build.encode_family(&build_labels())?)
    }
}

fn encode_value(kind: Kind, value: u64, encoder: MetricEncoder<'_>) -> fmt::Result {
    match kind {
        Kind::Counter => ConstCounter::new(value).encode(encoder),
        Kind::Gauge => ConstGauge::new(value).encode(encoder),
        Kind::Seconds => ConstGauge::new(kind.shown(value)).encode(encoder),
    }
}

#[cfg(test)]
mod tests;
