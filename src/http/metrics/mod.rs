//! The metrics in the OpenMetrics text format of Prometheus.

use std::fmt;

use http::StatusCode;
use overlay_engine::metrics::{Catalogue, Family, Kind, Series, Snapshot};
use overlay_types::escape::lines;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{Format, Response, error};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns the response with all metrics of a state machine.
pub(super) fn render<S>(
    catalogue: &Catalogue<S>,
    snapshot: &Snapshot<S>,
    format: &Format,
) -> Response {
    let mut registry = Registry::with_prefix(catalogue.prometheus_prefix);
    registry.register_collector(Box::new(Families(snapshot.families(catalogue))));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => format.respond(StatusCode::OK, OPEN_METRICS, text.into_bytes()),
        // Writing to memory does not fail.
        Err(reason) => error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
    }
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
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
        Ok(())
    }
}

fn encode_value(kind: Kind, value: u64, encoder: MetricEncoder<'_>) -> fmt::Result {
    match kind {
        Kind::Counter => ConstCounter::new(value).encode(encoder),
        Kind::Gauge => ConstGauge::new(value).encode(encoder),
    }
}

#[cfg(test)]
mod tests;
