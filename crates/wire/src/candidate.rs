//! The znodes that masters write into ZooKeeper for leader election. Current Mesos writes JSON,
//! older versions wrote protobuf, and the oldest wrote the address of a process as text.

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddrV4};

use overlay_types::addr::Upid;
use overlay_types::protocol::Candidate;

use super::error::ConvertError;
use super::json;
use super::mesos::{Address, MasterInfo};
use super::message::decode;

/// The process ID of a Mesos master. Every candidate claims this ID.
const MESOS_MASTER: &str = "master";
/// Maximum number of characters of a pid in a message.
const PID_MAX: usize = 80;

/// Encodes a candidate as a Mesos master does.
#[must_use]
pub fn encode_candidate(candidate: &Candidate) -> String {
    let address = candidate.address;
    let (ip, port) = (address.ip().to_string(), address.port());
    json::print(&MasterInfo {
        id: Some(candidate.id.clone()),
        ip: Some(u32::from_le_bytes(address.ip().octets())),
        port: Some(port.into()),
        pid: Some(format!("{MESOS_MASTER}@{address}")),
        hostname: Some(ip.clone()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        address: Some(Address {
            hostname: Some(ip.clone()),
            ip: Some(ip),
            port: Some(port.into()),
        }),
    })
}

/// Decodes the candidate in a znode whose name begins with `label`.
///
/// # Errors
/// If the label or the content has an unknown format, or if the address is not IPv4.
pub fn decode_candidate(label: &str, bytes: &[u8]) -> Result<Candidate, ConvertError> {
    let info: MasterInfo = match label {
        "json.info" => json::parse(bytes).map_err(unusable)?,
        "info" => decode(bytes)?,
        "" => {
            let text = std::str::from_utf8(bytes).map_err(unusable)?;
            let upid: Upid = text.trim().parse().map_err(unusable)?;
            return Ok(Candidate { id: upid.to_string(), address: upid.address });
        }
        _ => {
            return Err(unusable(format_args!("'{}' is not a known format", label.escape_debug())));
        }
    };
    let ip = info.address.as_ref().and_then(|address| address.ip.as_deref());
    let ip: Ipv4Addr = match ip {
        Some(ip) => ip.parse().map_err(|_| unusable(format_args!("'{ip}' is no IPv4 address")))?,
        None => info.ip().to_le_bytes().into(),
    };
    let port = match &info.address {
        Some(address) => u16::try_from(address.port()).ok(),
        None => u16::try_from(info.port()).ok(),
    };
    let port = port.filter(|port| *port > 0);
    let port = port.ok_or_else(|| unusable("has no usable port"))?;
    Ok(Candidate { id: info.id().to_owned(), address: SocketAddrV4::new(ip, port) })
}

fn unusable(reason: impl Display) -> ConvertError {
    ConvertError::field("candidate", reason)
}

/// Returns why no master would write this znode, although its content decodes as `candidate`.
/// Returns `None` if the candidate is plausible.
#[must_use]
pub fn implausible_candidate(label: &str, bytes: &[u8], candidate: &Candidate) -> Option<String> {
    let ip = candidate.address.ip();
    if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
        return Some(format!("its address {ip} cannot be the address of a master"));
    }
    let info: MasterInfo = match label {
        "json.info" => json::parse(bytes).ok()?,
        "info" => decode(bytes).ok()?,
        _ => return None,
    };
    let pid = info.pid?;
    let is_plausible = pid
        .parse()
        .is_ok_and(|upid: Upid| upid.id == MESOS_MASTER && upid.address == candidate.address);
    let shown: String = pid.chars().take(PID_MAX).flat_map(char::escape_debug).collect();
    (!is_plausible)
        .then(|| format!("its pid '{shown}' is not {MESOS_MASTER}@{}", candidate.address))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    const RECORDED: &[u8] =
        include_bytes!("../../../tests/golden/zookeeper-json.info_0000000000").as_slice();

    fn address(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    #[test]
    fn decode_recorded_mesos_master_succeeds() {
        let candidate = decode_candidate("json.info", RECORDED).unwrap();
        assert_eq!(candidate.address, address("127.0.0.1:5050"));
        assert_eq!(candidate.id, "f692c292-c4e8-424c-85a6-ab781a39eec0");
        assert!(!candidate.is_own());
    }

    #[test]
    fn encode_candidate_matches_recorded_mesos_master() {
        let recorded: serde_json::Value = serde_json::from_slice(RECORDED).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let candidate = Candidate { id: text(&recorded["id"]), address: address("127.0.0.1:5050") };
        let encoded = encode_candidate(&candidate);
        // Host name and version differ. The omitted capabilities are optional.
        let recorded_text = String::from_utf8(RECORDED.to_vec()).unwrap();
        let (before, rest) = recorded_text.split_once(r#""capabilities":["#).unwrap();
        let (_, after) = rest.split_once("],").unwrap();
        let expected = format!("{before}{after}")
            .replace("localhost", "127.0.0.1")
            .replace("1.12.0", env!("CARGO_PKG_VERSION"));
        assert_eq!(encoded, expected.trim_end());
        assert_eq!(decode_candidate("json.info", encoded.as_bytes()), Ok(candidate));
        let own = Candidate::own(address("10.0.0.1:5050"), 0xabc);
        assert_eq!(own.id, "mesos-overlay-0000000000000abc");
        assert!(own.is_own());
    }

    #[test]
    fn implausible_candidate_returns_reason() {
        let reason = |label: &str, bytes: &[u8]| {
            let candidate = decode_candidate(label, bytes).unwrap();
            implausible_candidate(label, bytes, &candidate)
        };
        assert_eq!(reason("json.info", RECORDED), None);
        let own = encode_candidate(&Candidate::own(address("10.0.0.1:5050"), 7));
        assert_eq!(reason("json.info", own.as_bytes()), None);
        assert_eq!(reason("", b"master@10.0.0.3:5053"), None);
        let other = own.replace("master@10.0.0.1", "evil@10.0.0.1");
        assert_eq!(
            reason("json.info", other.as_bytes()).unwrap(),
            "its pid 'evil@10.0.0.1:5050' is not master@10.0.0.1:5050"
        );
        for ip in ["0.0.0.0", "224.0.0.1", "255.255.255.255"] {
            assert_eq!(
                reason("json.info", own.replace("10.0.0.1", ip).as_bytes()).unwrap(),
                format!("its address {ip} cannot be the address of a master")
            );
        }
    }

    #[test]
    fn decode_older_formats_succeeds() {
        let mut info = MasterInfo {
            id: Some("id".to_owned()),
            ip: Some(0x0100_000a),
            port: Some(5051),
            ..MasterInfo::default()
        };
        let decode = |info: &MasterInfo| decode_candidate("info", &info.encode_to_vec());
        assert_eq!(decode(&info).unwrap().address, address("10.0.0.1:5051"));
        info.address =
            Some(Address { hostname: None, ip: Some("10.0.0.2".to_owned()), port: Some(5052) });
        assert_eq!(decode(&info).unwrap().address, address("10.0.0.2:5052"));
        let text = decode_candidate("", b"master@10.0.0.3:5053\n").unwrap();
        assert_eq!(text.address, address("10.0.0.3:5053"));
    }

    #[test]
    fn decode_unknown_format_is_refused() {
        let refused =
            |label: &str, bytes: &[u8]| decode_candidate(label, bytes).unwrap_err().to_string();
        assert_eq!(refused("log_replicas", b""), "candidate: 'log_replicas' is not a known format");
        let json = br#"{"id":"a","ip":0,"port":5050,"address":{"ip":"::1","port":5050}}"#;
        assert_eq!(refused("json.info", json), "candidate: '::1' is no IPv4 address");
        let json = br#"{"id":"a","ip":0,"port":0}"#;
        assert_eq!(refused("json.info", json), "candidate: has no usable port");
        for (label, bytes) in [("json.info", &b"{}"[..]), ("info", b"\xff"), ("", b"master")] {
            assert!(decode_candidate(label, bytes).is_err(), "{label:?}");
        }
    }
}
