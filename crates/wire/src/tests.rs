//! Compares the encoding with recorded messages and JSON of the C++ modules (see
//! `tests/golden/README`).

use overlay_types::protocol::{
    self, AgentRecord, MasterKind, OverlayRecord, Record, ReleasedRecord, Status,
};

use super::mesos::modules::overlay as pb;
use super::*;

/// Returns the body of a recorded request: the single chunk after the blank line.
fn body(request: &[u8]) -> &[u8] {
    let start = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let rest = &request[start..];
    let Some(line) = rest.windows(2).position(|window| window == b"\r\n") else {
        return &[];
    };
    let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
    &rest[line + 2..][..length]
}

fn round_trip(name: &str, request: &[u8]) -> protocol::Message {
    let name = format!("mesos.modules.overlay.internal.{name}");
    let message = decode_message(&name, body(request)).unwrap();
    assert_eq!(encode_message(&message), (name.as_str(), body(request).to_vec()), "bytes differ");
    message
}

macro_rules! golden {
    ($file:literal) => {
        include_bytes!(concat!("../../../tests/golden/", $file)).as_slice()
    };
}

#[test]
fn recorded_messages_round_trip_to_same_bytes() {
    let register = round_trip("RegisterAgentMessage", golden!("RegisterAgentMessage.http"));
    let protocol::Message::RegisterAgent(options) = register else { panic!("not a registration") };
    assert!(options.allocate_subnet && options.mesos_bridge && options.docker_bridge);
    assert_eq!(options.overlay_mtu.map(overlay_types::addr::Mtu::bytes), Some(1420));

    let update = golden!("UpdateAgentOverlaysMessage.http");
    let protocol::Message::UpdateAgentOverlays { overlays, .. } =
        round_trip("UpdateAgentOverlaysMessage", update)
    else {
        panic!("not an update")
    };
    assert_eq!(overlays.len(), 2);
    assert_eq!(overlays[1].subnet6.unwrap().to_string(), "fd01:b::/80");
    assert_eq!(overlays[0].vtep.mac.to_string(), "70:b3:d5:80:00:01");
    assert_eq!(overlays[0].status, None);

    // Masters of this project append fields that the C++ module does not know.
    let message = |master| {
        let overlays = overlays.clone();
        protocol::Message::UpdateAgentOverlays { overlays, master }
    };
    let (name, plain) = encode_message(&message(MasterKind::Other));
    for (master, fields) in [
        (MasterKind::Other, &[][..]),
        (MasterKind::Module, &[0xa8, 0x06, 0x01]),
        (MasterKind::Program, &[0xa0, 0x06, 0x01, 0xa8, 0x06, 0x01]),
    ] {
        let (_, encoded) = encode_message(&message(master));
        assert_eq!(encoded, [&plain[..], fields].concat());
        assert_eq!(decode_message(name, &encoded), Ok(message(master)));
    }
    // A program of a former version.
    let former = [&plain[..], &[0xa0, 0x06, 0x01]].concat();
    assert_eq!(decode_message(name, &former), Ok(message(MasterKind::Program)));

    let registered = golden!("AgentRegisteredMessage.http");
    let protocol::Message::AgentRegistered(overlays) =
        round_trip("AgentRegisteredMessage", registered)
    else {
        panic!("not a report")
    };
    assert!(overlays.iter().all(|overlay| overlay.status == Some(Status::Ok)));

    let acknowledgement = golden!("AgentRegisteredAcknowledgement.http");
    round_trip("AgentRegisteredAcknowledgement", acknowledgement);
}

#[test]
fn recorded_json_round_trips_to_same_bytes() {
    let text = golden!("overlay-master-state.json").trim_ascii_end();
    let state: pb::State = parse_json(text).unwrap();
    assert_eq!(print_json(&state).as_bytes(), text);

    let text = golden!("overlay-agent-overlay.json").trim_ascii_end();
    let agent: pb::AgentInfo = parse_json(text).unwrap();
    assert_eq!(print_json(&agent).as_bytes(), text);
}

#[test]
fn recorded_endpoints_round_trip_through_checked_types() {
    let text = golden!("overlay-master-state.json").trim_ascii_end();
    let state = decode_state(&parse_json(text).unwrap()).unwrap();
    assert_eq!(print_json(&encode_state(&state)).as_bytes(), text);

    let bytes = golden!("overlay-agent-overlay.pb");
    let agent = decode_agent(&decode(bytes).unwrap()).unwrap();
    assert_eq!(prost::Message::encode_to_vec(&encode_agent(&agent)), bytes);
    let text = golden!("overlay-agent-overlay.json").trim_ascii_end();
    assert_eq!(print_json(&encode_agent(&agent)).as_bytes(), text);
}

#[test]
fn decode_missing_required_fields_names_paths() {
    let error = |name: &str, bytes: &[u8]| {
        decode_message(&format!("mesos.modules.overlay.internal.{name}"), bytes)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error("RegisterAgentMessage", b""),
        "malformed mesos.modules.overlay.internal.RegisterAgentMessage: missing required \
         network_config"
    );
    // Field 1 with two overlays: one is empty, one has an info without a name.
    assert_eq!(
        error("AgentRegisteredMessage", &[0x0a, 0, 0x0a, 2, 0x0a, 0]),
        "malformed mesos.modules.overlay.internal.AgentRegisteredMessage: missing required \
         overlays[0].backend, overlays[0].info, overlays[1].backend, overlays[1].info.name"
    );
}

#[test]
fn decode_unusable_field_names_path() {
    let update = golden!("UpdateAgentOverlaysMessage.http");
    let name = "mesos.modules.overlay.internal.UpdateAgentOverlaysMessage";
    let mut bytes = body(update).to_vec();
    let at = bytes.windows(7).position(|window| window == b"vxlan-1").unwrap();
    bytes[at..at + 7].copy_from_slice(b"../../x");
    assert_eq!(
        decode_message(name, &bytes).unwrap_err().to_string(),
        "overlays[0].info.name: '../../x' contains '.': write letters, digits, '_', '.' and '-', \
         the first a letter or a digit"
    );
    bytes[at..at + 7].copy_from_slice(b"a\nERROR");
    assert_eq!(
        decode_message(name, &bytes).unwrap_err().to_string(),
        "overlays[0].info.name: 'a\\nERROR' contains '\\n': write letters, digits, '_', '.' and '-', \
         the first a letter or a digit"
    );
    assert!(decode_message(name, &[0xff, 0xff]).is_err());
    assert_eq!(
        decode_message("mesos.internal.PingSlaveMessage", b"").unwrap_err().to_string(),
        "unknown message 'mesos.internal.PingSlaveMessage'"
    );
}

#[test]
fn print_json_escapes_like_rapidjson() {
    let agent = pb::AgentInfo { ip: Some("\"\\/\n\u{1f}é".to_owned()), ..Default::default() };
    assert_eq!(print_json(&agent), r#"{"ip":"\"\\/\n\u001Fé"}"#);
    assert_eq!(parse_json::<pb::AgentInfo>(print_json(&agent).as_bytes()).unwrap(), agent);
}

#[test]
fn parse_json_wrong_type_is_refused() {
    let error = |text: &str| parse_json::<pb::State>(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(error("[]"), "expected an object");
    assert_eq!(error(r#"{"agents":{}}"#), "field 'agents': expected a list");
    assert_eq!(error(r#"{"agents":[{"ip":1}]}"#), "field 'ip': expected a string");
    assert!(error(r#"{"agents":[{}]}"#).ends_with("missing required agents[0].ip"));
    assert!(parse_json::<pb::State>(br#"{"agents":null,"new":1}"#).is_ok());
}

#[test]
fn record_round_trips() {
    let overlays = vec![OverlayRecord {
        name: "vxlan-1".parse().unwrap(),
        subnet: Some("192.168.0.0/24".parse().unwrap()),
        subnet6: Some("fd01:b::/80".parse().unwrap()),
    }];
    let agent = Record::Agent(AgentRecord {
        vtep_ip: "44.128.0.1".parse().unwrap(),
        vtep_ip6: Some("fd01:a::1".parse().unwrap()),
        overlays: overlays.clone(),
        allocate_subnet: true,
        mesos_bridge: false,
        docker_bridge: true,
        underlay: Some("fd00::5".parse().unwrap()),
        direct_mac: Some([2, 0, 0, 0, 0, 5].into()),
        authenticated: Some("agents".parse().unwrap()),
    });
    let released = ReleasedRecord { at: 1_700_000_000, vtep_ip: None, vtep_ip6: None, overlays };
    for record in [agent, Record::Released(released)] {
        assert_eq!(decode_record(&encode_record(&record)).unwrap(), record);
    }
    assert_eq!(decode_record(b"").unwrap_err().to_string(), "vtep_ip: is missing");
    assert!(decode_record(b"\x0a\x01x").is_err());
}

#[test]
fn register_underlay_is_checked() {
    let decode_underlay = |underlay: &str| {
        let config = pb::internal::AgentNetworkConfig {
            underlay: Some(underlay.to_owned()),
            ..Default::default()
        };
        let message = pb::internal::RegisterAgentMessage { network_config: Some(config) };
        let bytes = prost::Message::encode_to_vec(&message);
        let decoded =
            decode_message(MESSAGE_NAMES[0], &bytes).map_err(|error| error.to_string())?;
        let (_, again) = encode_message(&decoded);
        assert_eq!(decode_message(MESSAGE_NAMES[0], &again).unwrap(), decoded);
        let protocol::Message::RegisterAgent(options) = decoded else {
            panic!("not a registration")
        };
        Ok::<_, String>(options.underlay)
    };
    assert_eq!(decode_underlay("fd00::5"), Ok(Some("fd00::5".parse().unwrap())));
    for (given, kind) in [
        ("::1", "::1 is a loopback"),
        ("::", ":: is an unspecified"),
        ("ff02::1", "ff02::1 is a multicast"),
        ("fe80::5", "fe80::5 is a link-local"),
        ("::ffff:10.0.0.5", "::ffff:10.0.0.5 is an IPv4-mapped"),
        ("::ffff:a00:5", "::ffff:10.0.0.5 is an IPv4-mapped"),
        ("::10.0.0.5", "::a00:5 is an IPv4-compatible"),
    ] {
        let expected = format!("network_config.underlay: {kind} address");
        assert_eq!(decode_underlay(given).unwrap_err(), expected);
    }
    assert!(decode_underlay("10.0.0.5").unwrap_err().starts_with("network_config.underlay: "));
}

#[test]
fn register_agent_has_mac_only_with_direct_routing() {
    use overlay_types::protocol::{AgentOptions, Message};
    let plain = encode_message(&Message::RegisterAgent(AgentOptions::default())).1;
    let direct_mac = Some([2, 0, 0, 0, 0, 5].into());
    let options = AgentOptions { direct_mac, ..AgentOptions::default() };
    let (name, bytes) = encode_message(&Message::RegisterAgent(options));
    assert_eq!(decode_message(name, &bytes), Ok(Message::RegisterAgent(options)));
    assert_eq!(bytes.len(), plain.len() + "02:00:00:00:00:05".len() + 3, "one more field");
    let group = [2, 0, 0, 0, 0, 5].map(|byte: u8| byte | 1).into();
    let options = AgentOptions { direct_mac: Some(group), ..options };
    let (name, bytes) = encode_message(&Message::RegisterAgent(options));
    let error = decode_message(name, &bytes).unwrap_err().to_string();
    assert!(error.contains("direct_mac: 03:01:01:01:01:05 is not unicast"), "{error}");
}

#[test]
fn encode_state_includes_only_non_default_vxlan_device() {
    use overlay_types::addr::Vni;
    use overlay_types::protocol::Vxlan;
    let recorded = decode_state(&parse_json(golden!("overlay-master-state.json")).unwrap());
    let mut state = recorded.unwrap();
    assert_eq!(state.network.vxlan, Vxlan::default());
    let mut network = (*state.network).clone();
    let vni = Vni::new(7).unwrap();
    network.vxlan = Vxlan { port: 4789, ..Vxlan::with_vni(vni) };
    network.overlays[0].vni = Some(Vni::new(8).unwrap());
    state.network = network.into();
    let mut agent = (*state.agents[0]).clone();
    let vtep = &mut agent.overlays[0].vtep;
    (vtep.vni, vtep.device, vtep.port) = (vni, "vtep7".parse().unwrap(), 4789);
    state.agents[0] = agent.into();
    let printed = print_json(&encode_state(&state));
    for part in [r#""vni":8"#, r#""vtep_vni":7"#, r#""vtep_port":4789"#, r#""vtep_name":"vtep7""#] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert_eq!(decode_state(&parse_json(printed.as_bytes()).unwrap()), Ok(state.clone()));
    let mut network = (*state.network).clone();
    network.vxlan.device = "vtep-a".parse().unwrap();
    state.network = network.into();
    assert_eq!(decode_state(&encode_state(&state)), Ok(state));
}

/// Encodes a protobuf text field.
fn text_field(number: u8, text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    [&[number << 3 | 2, length], text.as_bytes()].concat()
}

#[test]
fn decode_unreadable_record_names_field_and_reason() {
    let overlay = |subnet: &str| {
        let inner = [text_field(1, "net"), text_field(2, subnet)].concat();
        let vtep = text_field(1, "44.128.0.2");
        [vtep, vec![3 << 3 | 2, u8::try_from(inner.len()).unwrap()], inner].concat()
    };
    let twice = [overlay("20.0.1.0/24"), overlay("20.0.2.0/24")].concat();
    let cases = [
        (b"garbage".to_vec(), "invalid wire type value: 7"),
        (Vec::new(), "vtep_ip: is missing"),
        (text_field(1, "44.128.0"), "vtep_ip: invalid IPv4 address syntax"),
        (
            overlay("20.0.1.1/24"),
            "overlays[0].subnet: '20.0.1.1/24' has host bits set: write 20.0.1.0/24",
        ),
        (overlay("fd00::/80"), "overlays[0].subnet: 'fd00::/80' is no IPv4 subnet"),
        (twice, "overlays[1].name: appears twice"),
    ];
    for (bytes, reason) in cases {
        let error = decode_record(&bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{error} does not contain {reason}");
    }
}

#[test]
fn encode_state_includes_unreached_peers() {
    use overlay_types::protocol::{PeerFailure, PeerFailureCause, PeerFailures};
    let recorded = decode_state(&parse_json(golden!("overlay-master-state.json")).unwrap());
    let mut state = recorded.unwrap();
    assert!(!print_json(&encode_state(&state)).contains("unreached"));
    let agent = "10.0.0.9".parse().unwrap();
    let failure = PeerFailure {
        agent,
        cause: PeerFailureCause::LargeLost,
        since: 1_700_000_000,
        lost: 3,
        round_trip: Some(250),
    };
    let failures = PeerFailures { peers: vec![failure], total: 2 };
    state.peer_failures.insert(state.agents[0].ip, failures);
    let printed = print_json(&encode_state(&state));
    let part = r#""unreached_peers":[{"cause":"large packets lost","ip":"10.0.0.9","lost":3,"round_trip_microseconds":250,"since":1700000000}],"unreached_peers_total":2"#;
    assert!(printed.contains(part), "{printed}");
    assert_eq!(decode_state(&parse_json(printed.as_bytes()).unwrap()), Ok(state));
}
