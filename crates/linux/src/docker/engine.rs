//! The version of the Docker engine, and its features.

use std::fmt;

use serde::Deserialize;

/// API of Docker 28.0, which introduced the gateway mode `nat-unprotected` and networks without
/// IPv4.
const API_OF_28: (u32, u32) = (1, 48);

/// A Docker engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Engine {
    version: String,
    /// The newest API version of the engine, independent of the `docker` program's version.
    /// Distributions extend the version ("20.10.24+dfsg1"), but not the API version.
    api: (u32, u32),
}

/// Why an answer of `docker version` cannot be parsed.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineParseError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("it contains no engine")]
    NoEngine,
    #[error("API version {0:?}")]
    ApiVersion(String),
}

impl Engine {
    /// Parses the answer of `docker version --format '{{json .Server}}'`.
    pub(super) fn parse(answer: &[u8]) -> Result<Self, EngineParseError> {
        let server: Option<Server> = serde_json::from_slice(answer)?;
        let server = server.ok_or(EngineParseError::NoEngine)?;
        let api = server.api_version.split_once('.');
        let api = api.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let api = api.ok_or(EngineParseError::ApiVersion(server.api_version))?;
        Ok(Self { version: server.version.escape_debug().to_string(), api })
    }

    /// Returns whether a bridge network needs the gateway mode `nat-unprotected`. From 28.0 on, the
    /// default mode drops packets from other hosts to ports without a port mapping, and overlays
    /// need these packets. Docker 27 knows the option and refuses this value; older engines ignore
    /// it.
    pub(super) fn has_unprotected_gateway_mode(&self) -> bool {
        self.api >= API_OF_28
    }

    /// Returns whether the engine supports networks without IPv4.
    pub(super) fn has_networks_without_ipv4(&self) -> bool {
        self.api >= API_OF_28
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.version)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Server {
    version: String,
    api_version: String,
}
