//! The full text of every refusal and every warning.

use super::tests::{filled, lines};
use super::{parse_agent, parse_master};

/// An input for [`filled`], and the expected messages: line, column, key and message.
type Row = (&'static str, &'static [&'static str]);

#[test]
fn parse_master_refusals_match_full_text() {
    for (text, expected) in MASTER_REFUSALS {
        let problems = parse_master("f", &filled(text)).expect_err(text);
        assert_eq!(lines(problems.as_slice()), *expected, "{text}");
    }
}

#[test]
fn parse_master_warnings_match_full_text() {
    for (text, expected) in MASTER_WARNINGS {
        let (_, warnings) = parse_master("f", &filled(text)).expect(text);
        assert_eq!(lines(&warnings), *expected, "{text}");
    }
}

#[test]
fn parse_agent_refusals_match_full_text() {
    for (text, expected) in AGENT_REFUSALS {
        let problems = parse_agent("f", text).expect_err(text);
        assert_eq!(lines(problems.as_slice()), *expected, "{text}");
    }
}

#[test]
fn parse_agent_warnings_match_full_text() {
    for (text, expected) in AGENT_WARNINGS {
        let (_, warnings) = parse_agent("f", text).expect(text);
        assert_eq!(lines(&warnings), *expected, "{text}");
    }
}

/// Inputs that the master refuses.
const MASTER_REFUSALS: &[Row] = &[
    (
        r#"{"network":{$V,"overlays":[$A]},"acls":{"reed":[],"read":[""],"write":"ANY"},"hostnames":["a.b:80"]}"#,
        &[
            r#"1:148: acls.reed: is no key: did you mean 'read'?"#,
            r#"1:166: acls.read[0]: is no principal: write a principal such as "ops", or "ANY" in the place of the list"#,
            r#"1:178: acls.write: is "ANY", which would let strangers release agents: write a list of principals"#,
            r#"1:198: hostnames[0]: is no host name: write a name such as "overlay.example.com", without port"#,
        ],
    ),
    (
        r#"{"a":[1,]}"#,
        &[
            r#"1:9: bad JSON: no value here: write a string in double quotes, a number, true, false, a list or an object, and no comma after the last"#,
        ],
    ),
    (
        r#"{"a":[1 2]}"#,
        &[r#"1:9: bad JSON: neither ',' nor ']' after the value: write one of them"#],
    ),
    (r#""#, &[r#"1:1: is empty: write a JSON object in { }"#]),
    (r#"[]"#, &[r#"1:1: is a list: write an object in { }"#]),
    (r#""a""#, &[r#"1:1: is a string: write an object in { }"#]),
    ("\u{feff}{}", &[r#"1:1: starts with a byte order mark: save it as UTF-8 without one"#]),
    (r#"{"a":1"#, &[r#"1:6: bad JSON: ends too early: close every quote and bracket"#]),
    (
        r#"{"a":1,}"#,
        &[
            r#"1:8: bad JSON: no key here: write one in double quotes, and no comma after the last member"#,
        ],
    ),
    (r#"{"a":1} x"#, &[r#"1:9: bad JSON: text after the last bracket: remove it"#]),
    (
        r#"{a:1}"#,
        &[
            r#"1:2: bad JSON: no key here: write one in double quotes, and no comma after the last member"#,
        ],
    ),
    (r#"{"a" 1}"#, &[r#"1:6: bad JSON: no ':' after the key: write "key": value"#]),
    (
        r#"{"a":1 "b":2}"#,
        &[r#"1:8: bad JSON: neither ',' nor '}' after the value: write one of them"#],
    ),
    (
        r#"{"a":[1 2]}"#,
        &[r#"1:9: bad JSON: neither ',' nor ']' after the value: write one of them"#],
    ),
    (
        r#"{"a":tru}"#,
        &[
            r#"1:9: bad JSON: no value here: write a string in double quotes, a number, true, false, a list or an object, and no comma after the last"#,
        ],
    ),
    (
        r#"{"a":}"#,
        &[
            r#"1:6: bad JSON: no value here: write a string in double quotes, a number, true, false, a list or an object, and no comma after the last"#,
        ],
    ),
    (
        r#"{"a":"\q"}"#,
        &[r#"1:8: bad JSON: backslash that escapes nothing: write \\ for a backslash"#],
    ),
    (
        "{\"a\":\"\n\"}",
        &[
            r#"1:6: bad JSON: line break or control character in a string: close its quotes, or write \n"#,
        ],
    ),
    (r#"{"a":01}"#, &[r#"1:7: bad JSON: no number: write digits, or a string in double quotes"#]),
    (r#"{"a":1.}"#, &[r#"1:8: bad JSON: no number: write digits, or a string in double quotes"#]),
    (
        "{\"a\":1, // no\n}",
        &[
            r#"1:9: bad JSON: no key here: write one in double quotes, and no comma after the last member"#,
        ],
    ),
    (
        r#"{$V,"overlays":[$A],"vtep_mtu":"\ud800"}"#,
        &[r#"1:139: vtep_mtu: is a string: write a number without quotes, 68 to 65535"#],
    ),
    (
        r#"{$V,"overlays":[{"name":"\ud800","subnet":"10.0.0.0/16","prefix":24}]}"#,
        &[
            r#"1:87: overlays[0].name: bad JSON: half a character: write the character itself instead of \u"#,
        ],
    ),
    (
        r#"{}"#,
        &[
            r#"1:1: vtep_subnet: is missing: write the IPv4 space of the VTEPs, such as "198.19.0.0/16""#,
            r#"1:1: vtep_mac_oui: is missing: write the upper half of MACs, such as "70:B3:D5:00:00:00""#,
            r#"1:1: overlays: is missing: write the list of overlay networks, each with name, subnet and prefix"#,
        ],
    ),
    (
        r#"{"network":{}}"#,
        &[
            r#"1:12: network.vtep_subnet: is missing: write the IPv4 space of the VTEPs, such as "198.19.0.0/16""#,
            r#"1:12: network.vtep_mac_oui: is missing: write the upper half of MACs, such as "70:B3:D5:00:00:00""#,
            r#"1:12: network.overlays: is missing: write the list of overlay networks, each with name, subnet and prefix"#,
        ],
    ),
    (
        r#"{"zk":{}}"#,
        &[r#"1:1: network: is missing: write an object with vtep_subnet and overlays"#],
    ),
    (
        r#"{"netwrok":{}}"#,
        &[
            r#"1:1: network: is missing: write an object with vtep_subnet and overlays"#,
            r#"1:2: netwrok: is no key: did you mean 'network'?"#,
        ],
    ),
    (
        r#"{"network":null}"#,
        &[r#"1:1: network: is missing: write an object with vtep_subnet and overlays"#],
    ),
    (r#"{"network":[]}"#, &[r#"1:12: network: is a list: write an object in { }"#]),
    (
        r#"{$V,"overlays":[$A],"reuse_after":"1h"}"#,
        &[r#"1:128: reuse_after: is no key here: it belongs in master_config"#],
    ),
    (
        r#"{"network":{$V,"overlays":[$A]},"vtep_mtu":1450}"#,
        &[r#"1:140: vtep_mtu: is no key here: it belongs in the network"#],
    ),
    (
        r#"{"network":{$V,"overlays":[$A],"overlay_mtu":1400}}"#,
        &[
            r#"1:139: network.overlay_mtu: is no key here: it belongs in 'network_config' of agent_config"#,
        ],
    ),
    (
        r#"{$V,"overlays":[$A],"prefix":24}"#,
        &[r#"1:128: prefix: is no key here: it belongs in an overlay of 'overlays'"#],
    ),
    (
        r#"{$V,"overlays":[$A],"Vtep-Subnet6":"fd00::/64"}"#,
        &[r#"1:128: Vtep-Subnet6: is no key: did you mean 'vtep_subnet6'?"#],
    ),
    (
        r#"{$V,"overlays":[$A],"x\n":1}"#,
        &[
            r#"1:128: x\n: is no key: the keys here are vtep_subnet, vtep_subnet6, vtep_mac_oui, vtep_mtu, vtep_vni, vtep_name, vtep_port, overlays"#,
        ],
    ),
    (
        r#"{$V,"overlays":[$A],"overlays":[]}"#,
        &[r#"1:128: overlays: is given more than once: keep one of them"#],
    ),
    (
        r#"{"vtep_subnet":44,"vtep_mac_oui":true,"vtep_subnet6":{},"vtep_mtu":"1450","overlays":{}}"#,
        &[
            r#"1:16: vtep_subnet: is a number: write a string such as "198.19.0.0/16""#,
            r#"1:34: vtep_mac_oui: is a boolean: write a string such as "70:B3:D5:00:00:00""#,
            r#"1:54: vtep_subnet6: is an object: write a string such as "fd01:a::/64""#,
            r#"1:68: vtep_mtu: is a string: write a number without quotes, 68 to 65535"#,
            r#"1:86: overlays: is an object: write a list in [ ]"#,
        ],
    ),
    (
        r#"{$V,"overlays":null}"#,
        &[
            r#"1:1: overlays: is missing: write the list of overlay networks, each with name, subnet and prefix"#,
        ],
    ),
    (
        r#"{$V,"overlays":[]}"#,
        &[r#"1:78: overlays: is empty: write at least one overlay, with name, subnet and prefix"#],
    ),
    (
        r#"{$V,"overlays":["a",1,null]}"#,
        &[
            r#"1:79: overlays[0]: is a string: write an object in { }"#,
            r#"1:83: overlays[1]: is a number: write an object in { }"#,
            r#"1:85: overlays[2]: is null: write an object in { }"#,
        ],
    ),
    (
        r#"{"vtep_subnet":"44.128.0.0","vtep_mac_oui":"70:B3","overlays":[$A]}"#,
        &[
            r#"1:16: vtep_subnet: '44.128.0.0' is no subnet: write address/length, as in 192.168.0.0/17 or fd01:b::/64"#,
            r#"1:44: vtep_mac_oui: '70:B3' is no MAC address: write six bytes in hexadecimal, as in 70:B3:D5:00:00:00"#,
        ],
    ),
    (
        r#"{"vtep_subnet":"44.128.0.1/16","vtep_mac_oui":"71:B3:D5:00:00:00","overlays":[$A]}"#,
        &[
            r#"1:16: vtep_subnet: '44.128.0.1/16' has host bits set: write 44.128.0.0/16"#,
            r#"1:47: vtep_mac_oui: '71:B3:D5:00:00:00' is a multicast address: the first byte must be even, as in 70:B3:D5:00:00:00"#,
        ],
    ),
    (
        r#"{"vtep_subnet":"fd01:a::/64","vtep_subnet6":"44.128.0.0/16","vtep_mac_oui":"70:B3:D5:00:00:01","overlays":[$A]}"#,
        &[
            r#"1:16: vtep_subnet: 'fd01:a::/64' is an IPv6 subnet: write it as 'vtep_subnet6', or an IPv4 subnet here"#,
            r#"1:45: vtep_subnet6: '44.128.0.0/16' is an IPv4 subnet: write it as 'vtep_subnet', or an IPv6 subnet here"#,
            r#"1:76: vtep_mac_oui: '70:B3:D5:00:00:01' has its lower half set: write 70:B3:D5:00:00:00, the rest follows from the VTEP IP"#,
        ],
    ),
    (
        r#"{"vtep_subnet":"44.0.0.0/7","vtep_subnet6":"fd01:a::/127","vtep_mac_oui":"70:B3:D5:00:00:00","overlays":[$A]}"#,
        &[
            r#"1:16: vtep_subnet: '44.0.0.0/7' is too wide: MACs follow from the low 24 bits of VTEP addresses; write a length of 8 to 30"#,
            r#"1:44: vtep_subnet6: 'fd01:a::/127' has no room for two VTEPs: write a length of at most 126"#,
        ],
    ),
    (
        r#"{"vtep_subnet":"44.128.0.0/31","vtep_subnet6":"fd01:a::/128","vtep_mac_oui":"70:B3:D5:00:00:00","overlays":[$A]}"#,
        &[
            r#"1:16: vtep_subnet: '44.128.0.0/31' has no room for two VTEPs: write a length of 8 to 30"#,
            r#"1:47: vtep_subnet6: 'fd01:a::/128' has no room for two VTEPs: write a length of at most 126"#,
        ],
    ),
    (
        r#"{"vtep_subnet":"44.128.0.0/32","vtep_mac_oui":"70:B3:D5:00:00:00","overlays":[$A]}"#,
        &[
            r#"1:16: vtep_subnet: '44.128.0.0/32' has no room for two VTEPs: write a length of 8 to 30"#,
        ],
    ),
    (
        r#"{"vtep_subnet":"0.0.0.0/0","vtep_subnet6":"ff00::/64","vtep_mac_oui":"70:B3:D5:00:00:00","overlays":[$A]}"#,
        &[
            r#"1:16: vtep_subnet: '0.0.0.0/0' overlaps the unspecified range 0.0.0.0/8: write other space, such as "198.19.0.0/16""#,
            r#"1:43: vtep_subnet6: 'ff00::/64' overlaps the multicast range ff00::/8: write other space, such as "fd01:a::/64""#,
        ],
    ),
    (
        r#"{"vtep_subnet":"127.0.0.0/8","vtep_subnet6":"fe80::/64","vtep_mac_oui":"70:B3:D5:00:00:00","overlays":[$A]}"#,
        &[
            r#"1:16: vtep_subnet: '127.0.0.0/8' overlaps the loopback range 127.0.0.0/8: write other space, such as "198.19.0.0/16""#,
            r#"1:45: vtep_subnet6: 'fe80::/64' overlaps the link-local range fe80::/10: write other space, such as "fd01:a::/64""#,
        ],
    ),
    (
        r#"{$V,"vtep_vni":16777216,"vtep_port":65536,"vtep_name":"a b","overlays":[$A]}"#,
        &[
            r#"1:78: vtep_vni: 16777216 is no VXLAN network identifier: write 0 to 16777215"#,
            r#"1:99: vtep_port: 65536 is no UDP port: write 1 to 65535"#,
            r#"1:117: vtep_name: 'a b' cannot name a network device: write 1 to 15 letters, digits, '_', '.' and '-', the first a letter or a digit"#,
        ],
    ),
    (
        r#"{$V,"vtep_name":"vtep7","overlays":[{"name":"a","vni":7,"subnet":"10.0.0.0/16","prefix":24}]}"#,
        &[r#"1:79: vtep_name: 'vtep7' is the device of VNI 7, which 'a' has: write another"#],
    ),
    (
        r#"{$V,"vtep_name":"d-vtep","overlays":[{"name":"a","vni":"7","subnet":"10.0.0.0/16","prefix":24}]}"#,
        &[
            r#"1:79: vtep_name: 'd-vtep' does not begin with 'vtep': NetworkManager and systemd-networkd ignore only devices with this prefix; write another name"#,
            r#"1:118: overlays[0].vni: is a string: write a number without quotes, 0 to 16777215"#,
        ],
    ),
    (
        r#"{$V,"vtep_mtu":67,"overlays":[$A]}"#,
        &[r#"1:78: vtep_mtu: 67 is outside the kernel's range: write 68 to 65535"#],
    ),
    (
        r#"{$V,"vtep_mtu":65536,"overlays":[$A]}"#,
        &[r#"1:78: vtep_mtu: 65536 is outside the kernel's range: write 68 to 65535"#],
    ),
    (
        r#"{$V,"vtep_mtu":4294967296,"overlays":[$A]}"#,
        &[r#"1:78: vtep_mtu: 4294967296 is out of range: write 68 to 65535"#],
    ),
    (
        r#"{$V,"vtep_mtu":-1,"overlays":[$A]}"#,
        &[r#"1:78: vtep_mtu: -1 is negative: write 68 to 65535"#],
    ),
    (
        r#"{$V,"vtep_mtu":1450.5,"overlays":[$A]}"#,
        &[r#"1:78: vtep_mtu: 1450.5 is no whole number: write 68 to 65535"#],
    ),
    (
        r#"{$V,"vtep_mtu":1e3,"overlays":[$A]}"#,
        &[r#"1:78: vtep_mtu: 1e3 is no whole number: write 68 to 65535"#],
    ),
    (
        r#"{$V,"vtep_mtu":123456789012345678901234567890,"overlays":[$A]}"#,
        &[r#"1:78: vtep_mtu: 123456789012345678901234… is out of range: write 68 to 65535"#],
    ),
    (
        r#"{$V,"overlays":[{}]}"#,
        &[
            r#"1:79: overlays[0].name: is missing: write the name of the network, such as "vxlan-1""#,
            r#"1:79: overlays[0]: has no address space: write 'subnet' and 'prefix', or 'subnet6' and 'prefix6', or all"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":null,"subnet":"10.0.0.0/16"}]}"#,
        &[
            r#"1:79: overlays[0].name: is missing: write the name of the network, such as "vxlan-1""#,
            r#"1:79: overlays[0].prefix: is missing: write the length of each agent's subnet, such as 24"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","prefix":24,"prefix6":80}]}"#,
        &[
            r#"1:100: overlays[0].prefix: is given without 'subnet': write 'subnet' too, such as "192.168.0.0/17""#,
            r#"1:113: overlays[0].prefix6: is given without 'subnet6': write 'subnet6' too, such as "fd01:b::/64""#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet6":"fd01:b::/64"}]}"#,
        &[
            r#"1:79: overlays[0].prefix6: is missing: write the length of each agent's subnet, such as 80"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"fd01:b::/64","prefix":80}]}"#,
        &[
            r#"1:100: overlays[0].subnet: 'fd01:b::/64' is an IPv6 subnet: write it as 'subnet6', or an IPv4 subnet here"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet6":"10.0.0.0/16","prefix6":24}]}"#,
        &[
            r#"1:101: overlays[0].subnet6: '10.0.0.0/16' is an IPv4 subnet: write it as 'subnet', or an IPv6 subnet here"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"10.0.0.0/16","prefix":15}]}"#,
        &[
            r#"1:123: overlays[0].prefix: 15 is shorter than the overlay's '10.0.0.0/16': write 16 to 29"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"10.0.0.0/16","prefix":30}]}"#,
        &[
            r#"1:123: overlays[0].prefix: 30 is too long: half of an agent's subnet has to hold network, gateway, container and broadcast address; write 16 to 29"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"10.0.0.0/16","prefix":"24"}]}"#,
        &[r#"1:123: overlays[0].prefix: is a string: write a number without quotes, 16 to 29"#],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"10.0.0.0/16","prefix":24.0}]}"#,
        &[r#"1:123: overlays[0].prefix: 24.0 is no whole number: write 16 to 29"#],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"10.0.0.0/16","prefix":256}]}"#,
        &[
            r#"1:123: overlays[0].prefix: 256 is too long: half of an agent's subnet has to hold network, gateway, container and broadcast address; write 16 to 29"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"10.0.0.0/30","prefix":30}]}"#,
        &[
            r#"1:100: overlays[0].subnet: '10.0.0.0/30' is too small for agents: write a length of at most 29"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet6":"fd01:b::/64","prefix6":63}]}"#,
        &[
            r#"1:125: overlays[0].prefix6: 63 is shorter than the overlay's 'fd01:b::/64': write 64 to 127"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet6":"fd01:b::/64","prefix6":128}]}"#,
        &[
            r#"1:125: overlays[0].prefix6: 128 is too long: an agent's subnet is split in two; write 64 to 127"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet6":"fd01:b::/128","prefix6":128}]}"#,
        &[
            r#"1:101: overlays[0].subnet6: 'fd01:b::/128' is too small for agents: write a length of at most 127"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"10.0.0.1/16","prefix":24}]}"#,
        &[r#"1:100: overlays[0].subnet: '10.0.0.1/16' has host bits set: write 10.0.0.0/16"#],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"224.0.0.0/8","prefix":24},{"name":"b","subnet":"169.254.0.0/16","prefix":24},{"name":"c","subnet6":"::/0","prefix6":64}]}"#,
        &[
            r#"1:100: overlays[0].subnet: '224.0.0.0/8' overlaps the multicast range 224.0.0.0/4: write other space, such as "192.168.0.0/17""#,
            r#"1:148: overlays[1].subnet: '169.254.0.0/16' overlaps the link-local range 169.254.0.0/16: write other space, such as "192.168.0.0/17""#,
            r#"1:200: overlays[2].subnet6: '::/0' overlaps the unspecified range ::/128: write other space, such as "fd01:b::/64""#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"","subnet":"10.0.0.0/16","prefix":24}]}"#,
        &[r#"1:87: overlays[0].name: is empty: write 1 to 13 characters"#],
    ),
    (
        r#"{$V,"overlays":[{"name":"vxlan-12345678","subnet":"10.0.0.0/16","prefix":24}]}"#,
        &[
            r#"1:87: overlays[0].name: 'vxlan-12345678' is 14 bytes long: write at most 13, since the bridge m-NAME is a network device"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"bridge","subnet":"10.0.0.0/16","prefix":24}]}"#,
        &[
            r#"1:87: overlays[0].name: 'bridge' is reserved by Docker and Mesos: write another name than host, bridge, default, none"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a/b","subnet":"10.0.0.0/16","prefix":24}]}"#,
        &[
            r#"1:87: overlays[0].name: 'a/b' contains '/': write letters, digits, '_', '.' and '-', the first a letter or a digit"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a\n\u001b","subnet":"10.0.0.0/16","prefix":24}]}"#,
        &[
            r#"1:87: overlays[0].name: 'a\n\u{1b}' contains '\n': write letters, digits, '_', '.' and '-', the first a letter or a digit"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":7,"subnet":"10.0.0.0/16","prefix":24,"enabled":"yes"}]}"#,
        &[
            r#"1:87: overlays[0].name: is a number: write a string such as "vxlan-1""#,
            r#"1:134: overlays[0].enabled: is a string: write true or false without quotes"#,
        ],
    ),
    (
        r#"{$V,"overlays":[$A,{"name":"a","subnet":"10.1.0.0/16","prefix":24},{"name":"A","subnet":"10.2.0.0/16","prefix":24}]}"#,
        &[
            r#"1:135: overlays[1].name: 'a' is the name of overlays[0] already: write another"#,
            r#"1:183: overlays[2].name: 'A' differs from 'a' of overlays[0] in case only, and iptables chains are named in upper case: write another"#,
        ],
    ),
    (
        r#"{$V,"overlays":[$A,{"name":"b","subnet":"10.0.128.0/17","prefix":24},{"name":"/","subnet":"10.0.0.0/8","prefix":24}]}"#,
        &[
            r#"1:148: overlays[1].subnet: '10.0.128.0/17' of 'b' overlaps '10.0.0.0/16' of 'a': write a separate subnet"#,
            r#"1:185: overlays[2].name: '/' contains '/': write letters, digits, '_', '.' and '-', the first a letter or a digit"#,
            r#"1:198: overlays[2].subnet: '10.0.0.0/8' of overlays[2] overlaps '10.0.0.0/16' of 'a': write a separate subnet"#,
            r#"1:198: overlays[2].subnet: '10.0.0.0/8' of overlays[2] overlaps '10.0.128.0/17' of 'b': write a separate subnet"#,
        ],
    ),
    (
        r#"{$V,"vtep_subnet6":"fd01:a::/64","overlays":[{"name":"b","subnet":"44.0.0.0/8","prefix":24,"subnet6":"fd01::/16","prefix6":80}]}"#,
        &[
            r#"1:129: overlays[0].subnet: '44.0.0.0/8' of 'b' overlaps '44.128.0.0/16' of vtep_subnet: write a separate subnet"#,
            r#"1:164: overlays[0].subnet6: 'fd01::/16' of 'b' overlaps 'fd01:a::/64' of vtep_subnet6: write a separate subnet"#,
        ],
    ),
    (
        r#"{"network":{$V,"overlays":[$A]},"zk":{"url":"10.0.0.1:2181","quorum":0,"session_timeout":0}}"#,
        &[
            r#"1:152: zk.url: is no zk:// address: write the address of ZooKeeper, such as "zk://10.0.0.1:2181/mesos""#,
            r#"1:177: zk.quorum: 0 is out of range: write 1 to 100"#,
            r#"1:197: zk.session_timeout: 0 is out of range: write 1 to 3600"#,
        ],
    ),
    (
        r#"{"network":{$V,"overlays":[$A]},"zk":{"url":"","quorum":"2","session_timeout":"10secs"}}"#,
        &[
            r#"1:152: zk.url: is empty: write the address of ZooKeeper, such as "zk://10.0.0.1:2181/mesos""#,
            r#"1:164: zk.quorum: is a string: write a number without quotes, 1 to 100"#,
            r#"1:186: zk.session_timeout: is a string: write a number without quotes, 1 to 3600"#,
        ],
    ),
    (
        r#"{"network":{$V,"overlays":[$A]},"zk":{"url":"zk://a b/c"},"replicated_log_dir":"","replicated_log_timeout":"0ns","reuse_after":3600}"#,
        &[
            r#"1:152: zk.url: contains white space: write the address of ZooKeeper, such as "zk://10.0.0.1:2181/mesos""#,
            r#"1:187: replicated_log_dir: is empty: write a path such as "/var/lib/mesos/overlay_replicated_log""#,
            r#"1:215: replicated_log_timeout: '0ns' is out of range: write 1ns to 1day"#,
            r#"1:235: reuse_after: is a number: write a string with number and unit, such as "1h""#,
        ],
    ),
    (
        r#"{"network":{$V,"overlays":[$A]},"replicated_log_dir":1,"replicated_log_timeout":"2days","reuse_after":"1 fortnight"}"#,
        &[
            r#"1:161: replicated_log_dir: is a number: write a path such as "/var/lib/mesos/overlay_replicated_log""#,
            r#"1:188: replicated_log_timeout: '2days' is out of range: write 1ns to 1day"#,
            r#"1:210: reuse_after: '1 fortnight' is no duration: write a string with number and unit, such as "1h""#,
        ],
    ),
    (
        r#"{"network":{$V,"overlays":[$A]},"reuse_after":"2years"}"#,
        &[r#"1:154: reuse_after: '2years' is out of range: write 0s to 1year"#],
    ),
    (
        r#"{"network":{$V,"overlays":[$A]},"reuse_after":"18446744073709551615s 1000ms"}"#,
        &[
            r#"1:154: reuse_after: '18446744073709551615s 1000ms' is no duration: write a string with number and unit, such as "1h""#,
        ],
    ),
    (
        r#"{"network":{$V,"overlays":[$A]},"store":"tape","work_dir":"w"}"#,
        &[
            r#"1:148: store: is no store: write file, memory, zk://HOST:PORT,…/PATH, or file:///PATH of a file that holds such an address"#,
            r#"1:166: work_dir: 'w' is relative: write a path from /, such as "/var/lib/mesos-overlay""#,
        ],
    ),
    (
        r#"{"network":{$V,"overlays":[$A]},"store":true,"work_dir":""}"#,
        &[
            r#"1:148: store: is a boolean: write file, memory, zk://HOST:PORT,…/PATH, or file:///PATH of a file that holds such an address"#,
            r#"1:164: work_dir: is empty: write a path such as "/var/lib/mesos-overlay""#,
        ],
    ),
    (
        r#"{"network":{$V,"overlays":[$A]},"store":"zk://user:secret@10.0.0.1:2181"}"#,
        &[
            r#"1:148: store: names no path in ZooKeeper: write one after the servers, as in zk://10.0.0.1:2181,10.0.0.2:2181/mesos-overlay"#,
        ],
    ),
    (
        r#"{"network":{$V,"overlays":[$A]},"store":"file://relative"}"#,
        &[
            r#"1:148: store: is no store: write file, memory, zk://HOST:PORT,…/PATH, or file:///PATH of a file that holds such an address"#,
        ],
    ),
    (
        r#"{$V,"overlays":[$A],"store":"file","agent_config":"/a"}"#,
        &[
            r#"1:128: store: is no key here: it belongs in master_config"#,
            r#"1:143: agent_config: is no key here: it belongs in the parameters of the agent module"#,
        ],
    ),
];

/// Inputs that the master accepts with a warning.
const MASTER_WARNINGS: &[Row] = &[
    (
        r#"{"network":{$V,"overlays":[$A]},"zk":{"url":"zk://a:2181/mesos","quorum":2},"replicated_log_dir":"/d","replicated_log_timeout":"5mins","reuse_after":"0s"}"#,
        &[
            r#"1:145: zk: is used by the Mesos module only: the standalone program uses --store"#,
            r#"1:205: replicated_log_dir: is used by the Mesos module only: the standalone program uses --store"#,
            r#"1:235: replicated_log_timeout: is used by the Mesos module only: the standalone program uses --store"#,
            r#"1:257: reuse_after: 0 allows another agent to get a released address at once, while peers still send to the previous agent"#,
        ],
    ),
    (
        r#"{"vtep_subnet":"8.8.0.0/16","vtep_subnet6":"2001:db8::/64","vtep_mac_oui":"70:B3:D5:00:00:00","overlays":[{"name":"a","subnet":"9.0.0.0/8","prefix":24,"subnet6":"2a00::/64","prefix6":80}]}"#,
        &[
            r#"1:16: vtep_subnet: '8.8.0.0/16' is public space: hosts of its owner cannot be reached from here; write private space, as in 10.0.0.0/8"#,
            r#"1:16: vtep_subnet: '8.8.0.0/16' has room for 65534 agents, every overlay for 65536 or more: VTEP addresses run out first"#,
            r#"1:44: vtep_subnet6: '2001:db8::/64' is public space: hosts of its owner cannot be reached from here; write private space, as in fc00::/7"#,
            r#"1:128: overlays[0].subnet: '9.0.0.0/8' is public space: hosts of its owner cannot be reached from here; write private space, as in 10.0.0.0/8"#,
            r#"1:162: overlays[0].subnet6: '2a00::/64' is public space: hosts of its owner cannot be reached from here; write private space, as in fc00::/7"#,
        ],
    ),
    (
        r#"{"vtep_subnet":"172.17.0.0/16","vtep_mac_oui":"70:B3:D5:00:00:00","overlays":[{"name":"a","subnet":"172.16.0.0/16","prefix":24},{"name":"b","subnet":"172.18.0.0/15","prefix":24}]}"#,
        &[
            r#"1:16: vtep_subnet: '172.17.0.0/16' overlaps 172.17.0.0/16, which Docker gives its own bridge by default: write other space, or set 'bip' of Docker"#,
            r#"1:100: overlays[0].subnet: '172.16.0.0/16' has room for 256 agents, 'b' for 512: later agents get no subnet of it"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"172.17.128.0/17","prefix":24}]}"#,
        &[
            r#"1:100: overlays[0].subnet: '172.17.128.0/17' overlaps 172.17.0.0/16, which Docker gives its own bridge by default: write other space, or set 'bip' of Docker"#,
        ],
    ),
    (
        r#"{"vtep_subnet":"44.128.0.0/28","vtep_subnet6":"fd01:a::/125","vtep_mac_oui":"70:B3:D5:00:00:00","overlays":[$A]}"#,
        &[
            r#"1:16: vtep_subnet: '44.128.0.0/28' has room for 14 agents, every overlay for 256 or more: VTEP addresses run out first"#,
            r#"1:47: vtep_subnet6: 'fd01:a::/125' has room for 7 agents, '44.128.0.0/28' for 14: IPv6 VTEP addresses run out first"#,
        ],
    ),
    (
        r#"{$V,"vtep_mtu":9000,"overlays":[$A]}"#,
        &[r#"1:78: vtep_mtu: 9000 needs an MTU of 9050 in the network between the agents"#],
    ),
    (
        r#"{$V,"vtep_mtu":1400,"overlays":[$A]}"#,
        &[
            r#"1:78: vtep_mtu: 1400 is less than the 1420 that containers of C++ agents have: set 'overlay_mtu' of such agents to at most 1400"#,
        ],
    ),
    (
        r#"{$V,"vtep_mtu":1200,"overlays":[{"name":"a","subnet6":"fd01:b::/64","prefix6":126}]}"#,
        &[
            r#"1:78: vtep_mtu: 1200 is less than the 1420 that containers of C++ agents have: set 'overlay_mtu' of such agents to at most 1200"#,
            r#"1:78: vtep_mtu: 1200 carries no IPv6: write at least 1280"#,
            r#"1:141: overlays[0].prefix6: 126 leaves no address for a container in half of an agent's subnet: write at most 125"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"10.0.0.0/16","prefix":24,"enabled":false}]}"#,
        &[r#"1:79: overlays[0]: is disabled like all overlays: agents get no network"#],
    ),
    (
        r#"{$V,"overlays":[$A,{"name":"b","subnet":"10.1.0.0/24","prefix":26},{"name":"c","subnet6":"fd01:b::/78","prefix6":80}]}"#,
        &[
            r#"1:148: overlays[1].subnet: '10.1.0.0/24' has room for 4 agents, 'a' for 256: later agents get no subnet of it"#,
            r#"1:197: overlays[2].subnet6: 'fd01:b::/78' has room for 4 agents, 'a' for 256: later agents get no subnet of it"#,
        ],
    ),
    (
        r#"{$V,"overlays":[{"name":"a","subnet":"10.0.0.0/24","prefix":24}]}"#,
        &[
            r#"1:123: overlays[0].prefix: 24 gives all of '10.0.0.0/24' to the first agent: write more"#,
        ],
    ),
];

/// Inputs that the agent refuses.
const AGENT_REFUSALS: &[Row] = &[
    (
        r#"{}"#,
        &[
            r#"1:1: cni_dir: is missing: write the directory where Mesos reads CNI networks, such as "/var/lib/mesos/cni""#,
        ],
    ),
    (
        r#"{"cni_dir":"cni","cni_data_dir":"","master":"10.0.0.1"}"#,
        &[
            r#"1:12: cni_dir: 'cni' is relative: write a path from /, such as "/var/lib/mesos/cni""#,
            r#"1:33: cni_data_dir: is empty: write a path such as "/var/run/cni/networks""#,
            r#"1:45: master: is no address of a master: write HOST:PORT, zk://HOST:PORT/PATH or file:///PATH"#,
        ],
    ),
    (
        r#"{"cni_dir":7,"cni_data_dir":"data","master":""}"#,
        &[
            r#"1:12: cni_dir: is a number: write a path such as "/var/lib/mesos/cni""#,
            r#"1:29: cni_data_dir: 'data' is relative: write a path from /, such as "/var/run/cni/networks""#,
            r#"1:45: master: is empty: write HOST:PORT, zk://HOST:PORT/PATH or file:///PATH"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c\u0000","master":"zk://a:2181","cni_plugins_dir":"/usr/lib/cni:bin"}"#,
        &[
            r#"1:12: cni_dir: '/c\0' contains a control character: remove it"#,
            r#"1:32: master: is no address of a master: write HOST:PORT, zk://HOST:PORT/PATH or file:///PATH"#,
            r#"1:64: cni_plugins_dir: contains the relative path 'bin': write paths from / with ':' between them"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","cni_plugin":"overlay"}"#,
        &[
            r#"1:30: cni_plugin: needs 'cni_plugins_dir': write the directories of the Mesos agent's --network_cni_plugins_dir"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","master":"file://x","cni_plugins_dir":"/a::/b","docker":"bin/docker"}"#,
        &[
            r#"1:26: master: is no address of a master: write HOST:PORT, zk://HOST:PORT/PATH or file:///PATH"#,
            r#"1:55: cni_plugins_dir: contains the relative path '': write paths from / with ':' between them"#,
            r#"1:73: docker: 'bin/docker' is relative: write a path from /, or a name without '/'"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","master":"a b:5050","docker":""}"#,
        &[
            r#"1:26: master: contains white space: write HOST:PORT, zk://HOST:PORT/PATH or file:///PATH"#,
            r#"1:46: docker: is empty: write a path such as "/usr/bin/docker""#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","master":["a:1"],"docker":".."}"#,
        &[
            r#"1:26: master: is a list: write HOST:PORT, zk://HOST:PORT/PATH or file:///PATH"#,
            r#"1:43: docker: '..' is relative: write a path from /, or a name without '/'"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","master":"http://h:80"}"#,
        &[
            r#"1:26: master: is no address of a master: write HOST:PORT, zk://HOST:PORT/PATH or file:///PATH"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","master":"host:0"}"#,
        &[
            r#"1:26: master: is no address of a master: write HOST:PORT, zk://HOST:PORT/PATH or file:///PATH"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","max_configuration_attempts":0,"verify_interval":"0s","port_mapper":1}"#,
        &[
            r#"1:46: max_configuration_attempts: 0 is out of range: write 1 to 1000"#,
            r#"1:66: verify_interval: '0s' is out of range: write 1s to 1day"#,
            r#"1:85: port_mapper: is a number: write true or false without quotes"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","max_configuration_attempts":"4","verify_interval":60}"#,
        &[
            r#"1:46: max_configuration_attempts: is a string: write a number without quotes, 1 to 1000"#,
            r#"1:68: verify_interval: is a number: write a string with number and unit, such as "60s""#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","dataplane":"ovs","firewall":"nft","underlay":"10.0.0.1","state_dir":"s"}"#,
        &[
            r#"1:29: dataplane: 'ovs' is not a valid value: write "vxlan" or "external""#,
            r#"1:46: firewall: 'nft' is not a valid value: write "auto", "nftables", "iptables" or "none""#,
            r#"1:63: underlay: '10.0.0.1' is no IPv6 address: write an IPv6 address of this host, such as "fd00::5""#,
            r#"1:86: state_dir: 's' is relative: write a path from /, such as "/var/lib/mesos-overlay""#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","underlay":"::1","masquerade":1,"isolate_overlays":"yes"}"#,
        &[
            r#"1:28: underlay: ::1 is a loopback address: write an IPv6 address of this host, such as "fd00::5""#,
            r#"1:47: masquerade: is a number: write true or false without quotes"#,
            r#"1:68: isolate_overlays: is a string: write true or false without quotes"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","verify_interval":"60"}"#,
        &[
            r#"1:35: verify_interval: '60' is no duration: write a string with number and unit, such as "60s""#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","verify_interval":"2days"}"#,
        &[r#"1:35: verify_interval: '2days' is out of range: write 1s to 1day"#],
    ),
    (
        r#"{"cni_dir":"/c","overlay_mtu":1400,"vtep_subnet":"44.128.0.0/16","cni-dir":"/d","colour":"red"}"#,
        &[
            r#"1:17: overlay_mtu: is no key here: it belongs in 'network_config' of agent_config"#,
            r#"1:36: vtep_subnet: is no key here: it belongs in the network"#,
            r#"1:66: cni-dir: is no key: did you mean 'cni_dir'?"#,
            r#"1:81: colour: is no key: the keys here are master, cni_dir, cni_data_dir, cni_plugins_dir, cni_plugin, port_mapper, docker, network_config, max_configuration_attempts, verify_interval, dataplane, underlay, firewall, masquerade, isolate_overlays, overlay_ingress, known_agents_only, forwarding, vxlan_checksum, host_settings, refuse_collisions, direct_routing, probe_rate, repair_offloads, state_dir, limits, acls, hostnames, credential, authentication"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","limits":{"connections":100,"connections_per_address":200,"registrations_per_second":10,"write_timeout":9}}"#,
        &[
            r#"1:71: limits.connections_per_address: 200 is more than 'connections', 100: write less"#,
            r#"1:102: limits.registrations_per_second: is a limit of masters: an agent receives no registrations"#,
            r#"1:121: limits.write_timeout: is a number: write a string with number and unit, such as "30s""#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","network_config":[]}"#,
        &[r#"1:34: network_config: is a list: write an object in { }"#],
    ),
    (
        r#"{"cni_dir":"/c","network_config":{"allocate_subnet":"true","mesos_bridge":1,"docker_bridge":{},"enable_ipv6":[],"overlay_mtu":20,"command_timeout":0,"mesos_brige":true}}"#,
        &[
            r#"1:53: network_config.allocate_subnet: is a string: write true or false without quotes"#,
            r#"1:75: network_config.mesos_bridge: is a number: write true or false without quotes"#,
            r#"1:93: network_config.docker_bridge: is an object: write true or false without quotes"#,
            r#"1:110: network_config.enable_ipv6: is a list: write true or false without quotes"#,
            r#"1:127: network_config.overlay_mtu: 20 is outside the kernel's range: write 68 to 65535"#,
            r#"1:148: network_config.command_timeout: 0 is out of range: write 100 to 3600000 milliseconds"#,
            r#"1:150: network_config.mesos_brige: is no key: did you mean 'mesos_bridge'?"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","network_config":{"overlay_mtu":true,"command_timeout":15}}"#,
        &[
            r#"1:49: network_config.overlay_mtu: is a boolean: write a number without quotes, 68 to 65535"#,
            r#"1:72: network_config.command_timeout: 15 is out of range: write 100 to 3600000 milliseconds"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","network_config":{"command_timeout":3600001}}"#,
        &[
            r#"1:53: network_config.command_timeout: 3600001 is out of range: write 100 to 3600000 milliseconds"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","network_config":{"command_timeout":"15secs"}}"#,
        &[
            r#"1:53: network_config.command_timeout: is a string: write a number without quotes, 100 to 3600000 milliseconds"#,
        ],
    ),
];

/// Inputs that the agent accepts with a warning.
const AGENT_WARNINGS: &[Row] = &[
    (
        r#"{"cni_dir":"/c","port_mapper":true,"cni_plugins_dir":"/usr/lib/cni","cni_plugin":"overlay"}"#,
        &[r#"1:31: port_mapper: has no effect: 'cni_plugin' is overlay"#],
    ),
    (
        r#"{"cni_dir":"/c","cni_data_dir":"/c","port_mapper":false,"cni_plugins_dir":"/usr/lib/cni"}"#,
        &[
            r#"1:32: cni_data_dir: is the same as cni_dir: Mesos would read leases as networks; write another directory"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","network_config":{"overlay_mtu":1451}}"#,
        &[
            r#"1:49: network_config.overlay_mtu: 1451 is more than 1450: it needs an MTU of 1501 in the network between the agents and 1451 or more for 'vtep_mtu'"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","network_config":{"overlay_mtu":1279}}"#,
        &[
            r#"1:49: network_config.overlay_mtu: 1279 carries no IPv6: write at least 1280, or false for 'enable_ipv6'"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","network_config":{"mesos_bridge":false,"docker_bridge":false}}"#,
        &[
            r#"1:34: network_config: allocates subnets that no container can use: write false for 'allocate_subnet' too"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","network_config":{"allocate_subnet":false,"mesos_bridge":true,"docker_bridge":true}}"#,
        &[
            r#"1:74: network_config.mesos_bridge: has no effect: 'allocate_subnet' is false"#,
            r#"1:95: network_config.docker_bridge: has no effect: 'allocate_subnet' is false"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","dataplane":"external","firewall":"auto","masquerade":false}"#,
        &[
            r#"1:51: firewall: has no effect: 'dataplane' is external"#,
            r#"1:71: masquerade: has no effect: 'dataplane' is external"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","firewall":"none","isolate_overlays":true,"overlay_ingress":"open"}"#,
        &[
            r#"1:54: isolate_overlays: has no effect: 'firewall' is none"#,
            r#"1:77: overlay_ingress: has no effect: 'firewall' is none"#,
        ],
    ),
    (
        r#"{"cni_dir":"/c","isolate_overlays":true,"known_agents_only":false}"#,
        &[
            r#"1:36: isolate_overlays: does not hold against forged packets: 'known_agents_only' is false"#,
        ],
    ),
];
