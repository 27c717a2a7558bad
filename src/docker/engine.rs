//! Which engine answers, and what it can do.

use std::fmt;

use serde::Deserialize;

/// API of Docker 28.0, which brought the gateway mode `nat-unprotected` and networks without IPv4.
const API_OF_28: (u32, u32) = (1, 48);

/// A Docker engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Engine {
    version: String,
    /// The newest API that it speaks, whatever the `docker` program speaks. Distributions put what
    /// they like into the version ("20.10.24+dfsg1"), but not into this.
    api: (u32, u32),
}

impl Engine {
    /// Reads the answer of `docker version --format '{{json .Server}}'`.
    pub(super) fn parse(answer: &[u8]) -> Result<Self, String> {
        let server: Option<Server> =
            serde_json::from_slice(answer).map_err(|error| error.to_string())?;
        let server = server.ok_or_else(|| "no engine in it".to_owned())?;
        let api = server.api_version.split_once('.');
        let api = api.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let api = api.ok_or_else(|| format!("API version {:?}", server.api_version))?;
        Ok(Self { version: server.version.escape_debug().to_string(), api })
    }

    /// Whether a bridge network needs the gateway mode `nat-unprotected`: from 28.0 on, the default
    /// mode drops packets from other hosts to ports that are not published, which is what an
    /// overlay is for. 27 knows the option and refuses the value; older engines ignore it.
    pub(super) fn has_unprotected_gateway_mode(&self) -> bool {
        self.api >= API_OF_28
    }

    /// Whether a network can go without IPv4.
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
