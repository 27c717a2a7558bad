//! The name of this server in a request. A page of another site can give its own name the address
//! of this server (DNS rebinding), and then a browser sends the page's requests here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use http::header::HOST;
use overlay_config::normalize_hostname;
use overlay_types::escape::bounded_line;
use overlay_types::secret::quote;

use super::Request;
use super::access::Denial;

/// The name that every host has.
const LOCALHOST: &str = "localhost";
/// Maximum length of a name that a message repeats, in characters.
const NAME_SHOWN: usize = 100;

/// Refuses a request for a name that is none of this server. A request without a name is not from a
/// browser.
pub(super) fn require_known_host(
    request: &Request,
    listed: &BTreeSet<String>,
    own: &BTreeSet<String>,
) -> Result<(), Box<Denial>> {
    let hosts = request.headers().get_all(HOST).iter().map(|value| value.to_str().ok());
    let authority = request.uri().authority().map(|authority| Some(authority.as_str()));
    for host in hosts.chain(authority) {
        if host.is_some_and(|host| is_known(host, listed, own)) {
            continue;
        }
        // An absolute URL may contain a user and a password.
        let shown = host.map_or_else(
            || "the name in the request".to_owned(),
            |host| quote(&bounded_line(host, NAME_SHOWN)),
        );
        return Err(Box::new(Denial::forbidden(format!(
            "{shown} is no name of this server: use its IP address, or list the name in \
             'hostnames' of the configuration"
        ))));
    }
    Ok(())
}

/// Whether `host`, with or without a port, is an IP address or a name of this server.
fn is_known(host: &str, listed: &BTreeSet<String>, own: &BTreeSet<String>) -> bool {
    if let Some(bracketed) = host.strip_prefix('[') {
        let Some((address, after)) = bracketed.split_once(']') else { return false };
        // A scope follows the address of a link.
        let address = address.split('%').next().unwrap_or_default();
        let has_port = after.is_empty() || after.strip_prefix(':').is_some_and(is_port);
        return has_port && address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6());
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        Some(_) => return false,
        None => host,
    };
    if name.parse::<IpAddr>().is_ok() {
        return true;
    }
    normalize_hostname(name)
        .is_some_and(|name| name == LOCALHOST || listed.contains(&name) || own.contains(&name))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|digit| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_names_of_server_are_known() {
        let listed = BTreeSet::from(["overlay.example.com".to_owned()]);
        let own = BTreeSet::from(["master1".to_owned(), "master1.example.net".to_owned()]);
        for host in [
            "10.0.0.1",
            "10.0.0.1:5050",
            "[::1]",
            "[fd00::1]:5050",
            "[fe80::1%eth0]:5050",
            "[fe80::1%25eth0]",
            "localhost",
            "LOCALHOST:5050",
            "Overlay.Example.com.:443",
            "master1:5050",
            "master1.example.net",
        ] {
            assert!(is_known(host, &listed, &own), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:5050",
            "10.0.0.1.evil.example",
            "localhost.evil.example",
            "master1.evil.example",
            "[evil.example]",
            "[10.0.0.1]",
            "[::1].evil.example",
            "[::1]x",
            "[::1]:80x",
            "[::1",
            "user@10.0.0.1",
            "10.0.0.1,evil.example",
            "10.0.0.1:x",
            "master2",
            "",
            ":5050",
            "localhost:5050@evil.example",
        ] {
            assert!(!is_known(host, &listed, &own), "{host}");
        }
    }
}
