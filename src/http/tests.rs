//! Requests and responses of the endpoints, compared with recorded bodies of the C++ modules.

use overlay_engine::agent::{
    AddressDetail, AddressDetails, AddressQuery, HalfDetails, OverlayDetails, Reply as AgentReply,
    Request as AgentRequest,
};
use overlay_engine::master::{
    Effect, Forget, ReleaseOutcome, ReleaseResult, Reply as MasterReply, Request as MasterRequest,
};
use overlay_types::address_usage::{
    AddressCount, AddressSource, HalfCounts, OverlayCounts, UsedAddress,
};

use super::*;

const STATE_JSON: &[u8] = include_bytes!("../../tests/golden/overlay-master-state.json");
const OVERLAY_JSON: &[u8] = include_bytes!("../../tests/golden/overlay-agent-overlay.json");
const OVERLAY_PB: &[u8] = include_bytes!("../../tests/golden/overlay-agent-overlay.pb");

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Request {
    let mut builder = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
}

fn get(path: &str, headers: &[(&str, &str)]) -> Request {
    request("GET", path, headers, "")
}

/// Returns the response with the recorded state, or the error response.
fn state(request: &Request) -> Response {
    let recorded = wire::decode_state(&wire::parse_json(STATE_JSON).unwrap()).unwrap();
    match route_master(request) {
        Ok((_, format)) => render_master(&MasterReply::State(recorded), &format),
        Err(response) => *response,
    }
}

fn overlay(request: &Request) -> Response {
    let recorded = wire::decode_agent(&wire::decode(OVERLAY_PB).unwrap()).unwrap();
    match route_agent(request) {
        Ok((_, format)) => {
            render_agent(&AgentReply::Overlay(recorded, OverlayCounts::new()), &format)
        }
        Err(response) => *response,
    }
}

fn content_type(response: &Response) -> &str {
    response.headers()[CONTENT_TYPE].to_str().unwrap()
}

fn text(response: &Response) -> &str {
    std::str::from_utf8(response.body()).unwrap()
}

#[test]
fn rendered_bodies_match_recorded_bytes() {
    let json = [
        (state(&get("/overlay-master/state", &[])), STATE_JSON),
        (overlay(&get("/overlay-agent/overlay", &[])), OVERLAY_JSON),
        // dcos-net's request.
        (overlay(&get("/overlay-agent/overlay", &[("accept", "application/json")])), OVERLAY_JSON),
    ];
    for (response, recorded) in json {
        assert_eq!(response.status(), 200);
        assert_eq!(content_type(&response), "application/json");
        assert_eq!(response.body(), recorded.trim_ascii_end());
    }
    let accept = [("Accept", "application/x-protobuf")];
    let response = overlay(&get("/overlay-agent/overlay", &accept));
    assert_eq!(content_type(&response), "application/x-protobuf");
    assert_eq!(response.body(), OVERLAY_PB);
}

#[test]
fn jsonp_wraps_response_in_valid_callback() {
    let response = state(&get("/overlay-master/state/?jsonp=app.on%5FState", &[]));
    assert_eq!(content_type(&response), "text/javascript");
    let text = text(&response);
    assert!(text.starts_with("app.on_State({\"agents\":") && text.ends_with("});"), "{text}");
    for name in ["", "alert(1)//", "a%0Ab", "%3Cscript%3E"] {
        let response = state(&get(&format!("/overlay-master/state?jsonp={name}"), &[]));
        assert_eq!(response.status(), 400, "{name} was accepted");
    }
}

#[test]
fn content_type_follows_accept() {
    let negotiated = |accept: &str| {
        let response = overlay(&get("/overlay-agent/overlay", &[("accept", accept)]));
        (response.status().as_u16(), content_type(&response).to_owned())
    };
    let json = (200, "application/json".to_owned());
    let protobuf = (200, "application/x-protobuf".to_owned());
    assert_eq!(negotiated("*/*"), json);
    assert_eq!(negotiated("text/html, application/*;q=0.8"), json);
    assert_eq!(negotiated("application/x-protobuf, application/json"), json);
    assert_eq!(negotiated("application/json;q=0, application/x-protobuf"), protobuf);
    assert_eq!(
        negotiated("application/json;q=0, */*"),
        protobuf,
        "the more specific entry decides"
    );
    assert_eq!(negotiated("text/html").0, 415);
}

#[test]
fn long_response_is_compressed_if_accepted() {
    let response = state(&get("/overlay-master/state", &[("accept-encoding", "deflate, gzip")]));
    assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&response.body()[..]), &mut plain)
        .unwrap();
    assert_eq!(plain, STATE_JSON.trim_ascii_end());
    for refusal in ["gzip;q=0", "gzip;q=0, *", "br"] {
        let response = state(&get("/overlay-master/state", &[("accept-encoding", refusal)]));
        assert!(!response.headers().contains_key(CONTENT_ENCODING), "{refusal}");
    }
}

#[test]
fn delete_accepts_only_list_of_addresses() {
    let delete = |headers: &[(&str, &str)], body: &str| {
        route_master(&request("POST", "/overlay-master/agents/delete", headers, body))
            .map(|(routed, _)| routed)
            .map_err(|response| (response.status().as_u16(), text(&response).to_owned()))
    };
    assert_eq!(
        delete(&[], r#"{"agents":["10.0.0.1","10.0.0.2"]}"#),
        Ok(MasterRequest::DeleteAgents(vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()]))
    );
    assert_eq!(
        delete(&[], r#"{"agents":["10.0.0.300"]}"#),
        Err((
            400,
            "invalid IPv4 address syntax at line 1 column 23: write {\"agents\":[\"10.0.0.1\"]}\n"
                .to_owned()
        ))
    );
    for body in ["", "[]", "{}", r#"{"agents":"10.0.0.1"}"#, r#"{"agents":[1]}"#] {
        assert_eq!(delete(&[], body).unwrap_err().0, 400, "{body} was accepted");
    }
    let body = r#"{"agents":[]}"#;
    let evil = [("host", "10.0.0.1:5050"), ("origin", "http://evil.example")];
    assert_eq!(delete(&evil, body).unwrap_err().0, 403);
    let own = [("host", "10.0.0.1:5050"), ("origin", "http://10.0.0.1:5050")];
    assert!(delete(&own, body).is_ok());
}

#[test]
fn delete_with_force_or_dry_run_is_forget_request() {
    let delete = |body: &str| {
        let request = request("POST", "/overlay-master/agents/delete", &[], body);
        route_master(&request).unwrap().0
    };
    let agents = vec![[10, 0, 0, 1].into()];
    let forget = |force, dry_run| {
        let agents = agents.clone();
        MasterRequest::Forget(Forget { agents, force, dry_run })
    };
    assert_eq!(delete(r#"{"agents":["10.0.0.1"],"force":false}"#), forget(false, false));
    assert_eq!(delete(r#"{"agents":["10.0.0.1"],"force":true}"#), forget(true, false));
    assert_eq!(delete(r#"{"agents":["10.0.0.1"],"dry_run":true}"#), forget(false, true));
    assert_eq!(delete(r#"{"agents":["10.0.0.1"]}"#), MasterRequest::DeleteAgents(agents.clone()));

    let (_, format) = route_master(&get("/overlay-master/state", &[])).unwrap();
    let mut result = ReleaseResult::unknown([10, 0, 0, 1].into());
    let answer = |result: &ReleaseResult| {
        let response = render_master(&MasterReply::ReleaseResults(vec![result.clone()]), &format);
        (response.status().as_u16(), text(&response).to_owned())
    };
    let plain = r#"{"agents":[{"ip":"10.0.0.1","subnets":[],"result":"not_known"}]}"#;
    assert_eq!(answer(&result), (200, plain.to_owned()));
    result.result = ReleaseOutcome::Running;
    result.last_seen_seconds_ago = Some(3);
    let running =
        r#"{"agents":[{"ip":"10.0.0.1","subnets":[],"result":"running","heard_seconds_ago":3}]}"#;
    assert_eq!(answer(&result), (409, running.to_owned()));
}

#[test]
fn preview_of_invalid_network_is_refused() {
    let preview = |body: &str| {
        route_master(&request("POST", "/overlay-master/preview", &[], body))
            .map(|(routed, _)| routed)
            .map_err(|response| (response.status().as_u16(), text(&response).to_owned()))
    };
    let network = include_str!("../../docs/network.json");
    let Ok(MasterRequest::Preview(parsed)) = preview(network) else { panic!("no preview") };
    assert_eq!(parsed.overlays.len(), 2);
    let wrapped = format!(r#"{{"network":{network}}}"#);
    assert!(matches!(preview(&wrapped), Ok(MasterRequest::Preview(_))));
    let (status, problems) = preview("{}").unwrap_err();
    assert_eq!(status, 400);
    assert!(problems.starts_with("request:1:1: vtep_subnet: "), "{problems}");

    let (_, format) = route_master(&get("/overlay-master/state", &[])).unwrap();
    let render = |reply: MasterReply| {
        let response = render_master(&reply, &format);
        (response.status().as_u16(), text(&response).to_owned())
    };
    let accepted = Effect { accepted: true, ..Effect::default() };
    assert_eq!(
        render(MasterReply::Effect(Box::new(accepted))),
        (
            200,
            r#"{"accepted":true,"changes":[],"problems":[],"warnings":[],"agents":[]}"#.to_owned()
        )
    );
    assert_eq!(render(MasterReply::Effect(Box::default())).0, 409);
    let (status, body) = render(MasterReply::Misconfigured(vec!["f:1:1: x".to_owned()]));
    assert_eq!(status, 422);
    assert!(body.contains(r#""problems":["f:1:1: x"]"#), "{body}");
}

#[test]
fn cross_site_post_is_refused() {
    let evil = [("host", "10.0.0.1:5050"), ("origin", "http://evil.example")];
    for path in ["/overlay-master/reload", "/overlay-master/preview"] {
        let refused = route_master(&request("POST", path, &evil, "{}")).unwrap_err();
        assert_eq!(refused.status(), 403, "{path}");
        assert_eq!(route_master(&get(path, &[])).unwrap_err().status(), 405, "{path}");
    }
    let host = ("host", "10.0.0.1:5050");
    let (own, site) = (("origin", "http://10.0.0.1:5050"), "sec-fetch-site");
    let reload = |headers: &[(&str, &str)]| {
        let routed = route_master(&request("POST", "/overlay-master/reload", headers, ""));
        routed.map(|(routed, _)| routed).map_err(|response| response.status().as_u16())
    };
    for headers in [
        &[host, own][..],
        // A proxy has changed the host.
        &[host, evil[1], (site, "same-origin")],
        &[host, (site, "none")],
    ] {
        assert_eq!(reload(headers), Ok(MasterRequest::Reload), "{headers:?}");
    }
    for headers in [
        &[host, (site, "cross-site")][..],
        &[host, own, (site, "same-site")],
        &[host, (site, "same-origin"), (site, "cross-site")],
        &[host, own, evil[1]],
        &[host, ("origin", "null")],
        &[own],
    ] {
        assert_eq!(reload(headers), Err(403), "{headers:?}");
    }
}

#[test]
fn unknown_path_lists_relative_paths() {
    let response = route_master(&get("//overlay-master/stat", &[])).unwrap_err();
    assert_eq!(
        text(&response),
        "no endpoint at 'overlay-master/stat': the endpoints of this server are \
         overlay-master/state, overlay-master/agents/delete, overlay-master/health, \
         overlay-master/metrics, overlay-master/history, overlay-master/preview, \
         overlay-master/reload\n"
    );
    let response = route_agent(&get("/", &[])).unwrap_err();
    assert_eq!(
        text(&response),
        "no endpoint at '': the endpoints of this server are overlay-agent/overlay, \
         overlay-agent/health, overlay-agent/probes, overlay-agent/addresses, \
         overlay-agent/metrics\n"
    );
}

#[test]
fn history_query_selects_all_agents_or_one() {
    let route = |path: &str| match route_master(&get(path, &[])) {
        Ok((routed, _)) => Ok(routed),
        Err(response) => Err(text(&response).to_owned()),
    };
    assert_eq!(route("/overlay-master/history"), Ok(MasterRequest::History(None)));
    assert_eq!(
        route("/overlay-master/history?agent=10.0.0.1"),
        Ok(MasterRequest::History(Some([10, 0, 0, 1].into())))
    );
    assert_eq!(
        route("/overlay-master/history?agent=x"),
        Err("agent: invalid IPv4 address syntax: write ?agent=10.0.0.1\n".to_owned())
    );
}

#[test]
fn probes_query_limits_named_peers() {
    let route = |path: &str| match route_agent(&get(path, &[])) {
        Ok((routed, _)) => Ok(routed),
        Err(response) => Err(text(&response).to_owned()),
    };
    assert_eq!(route("/overlay-agent/probes"), Ok(AgentRequest::Probes(64)));
    assert_eq!(route("/overlay-agent/probes?limit=0"), Ok(AgentRequest::Probes(0)));
    assert_eq!(route("/overlay-agent/probes?limit=1024"), Ok(AgentRequest::Probes(1024)));
    for invalid in ["1025", "-1", "x", ""] {
        let refused = "limit: it is no number from 0 to 1024: write ?limit=100\n".to_owned();
        assert_eq!(route(&format!("/overlay-agent/probes?limit={invalid}")), Err(refused));
    }
    let refused = route("/overlay-agent/probes?limits=1").unwrap_err();
    assert!(refused.contains("limit"), "{refused}");
}

#[test]
fn addresses_query_selects_overlay_and_limits_addresses() {
    let route = |path: &str| match route_agent(&get(path, &[])) {
        Ok((routed, _)) => Ok(routed),
        Err(response) => Err(text(&response).to_owned()),
    };
    let query = |overlay: Option<&str>, limit| {
        let overlay = overlay.map(|name| name.parse().unwrap());
        Ok(AgentRequest::Addresses(AddressQuery { overlay, limit }))
    };
    assert_eq!(route("/overlay-agent/addresses"), query(None, 64));
    assert_eq!(
        route("/overlay-agent/addresses?overlay=vxlan-1&limit=1024"),
        query(Some("vxlan-1"), 1024)
    );
    let refused = route("/overlay-agent/addresses?limit=1025").unwrap_err();
    assert!(refused.starts_with("limit: "), "{refused}");
    let refused = route("/overlay-agent/addresses?overlay=a%20b").unwrap_err();
    assert!(refused.starts_with("overlay: "), "{refused}");
}

#[test]
fn overlay_reply_has_counts_of_known_halves() {
    let recorded = wire::decode_agent(&wire::decode(OVERLAY_PB).unwrap()).unwrap();
    let format = route_agent(&get("/overlay-agent/overlay", &[])).unwrap().1;
    let counts = HalfCounts { mesos: Some(AddressCount { used: 3, free: 122 }), docker: None };
    let name = recorded.overlays[0].name().clone();
    let reply = AgentReply::Overlay(recorded, OverlayCounts::from([(name.clone(), counts)]));
    let response = render_agent(&reply, &format);
    let json = std::str::from_utf8(OVERLAY_JSON).unwrap();
    let bridge = r#""mesos_bridge":{"#;
    let expected =
        json.replacen(bridge, &format!(r#"{bridge}"addresses":{{"free":122,"used":3}},"#), 1);
    assert_eq!(text(&response), expected);
    let decoded = wire::decode_counts(&wire::parse_json(response.body()).unwrap());
    assert_eq!(decoded, OverlayCounts::from([(name, counts)]));
}

#[test]
fn addresses_reply_is_the_documented_json() {
    let used = UsedAddress {
        address: "192.168.1.2".parse().unwrap(),
        holder: Some("container-1".to_owned()),
        interface: Some("eth0".to_owned()),
        port: None,
        source: AddressSource::Lease,
    };
    let half = |containerizer, count: Option<u32>, error: Option<&str>, addresses| HalfDetails {
        containerizer,
        subnet: "192.168.1.0/25".to_owned(),
        used: count,
        free: count.map(|used| 125 - used),
        error: error.map(str::to_owned),
        addresses,
    };
    let halves = vec![
        half("mesos", Some(3), None, vec![AddressDetail(used)]),
        half("docker", None, Some("no netlink"), Vec::new()),
    ];
    let overlays = vec![OverlayDetails { name: "vxlan-1".to_owned(), halves }];
    let details = AddressDetails { age_seconds: Some(4), overlays };
    let format = route_agent(&get("/overlay-agent/addresses", &[])).unwrap().1;
    let response = render_agent(&AgentReply::Addresses(Box::new(details)), &format);
    assert_eq!(
        text(&response),
        concat!(
            r#"{"age_seconds":4,"overlays":[{"name":"vxlan-1","halves":[{"containerizer":"mesos","#,
            r#""subnet":"192.168.1.0/25","used":3,"free":122,"addresses":[{"#,
            r#""address":"192.168.1.2","holder":"container-1","interface":"eth0","#,
            r#""source":"lease"}]},{"containerizer":"docker","subnet":"192.168.1.0/25","#,
            r#""used":null,"free":null,"error":"no netlink","addresses":[]}]}]}"#
        )
    );
}

#[test]
fn invalid_requests_get_matching_status() {
    let status = |request: Request| match route_master(&request) {
        Ok((routed, _)) => panic!("{request:?} became {routed:?}"),
        Err(response) => response.status().as_u16(),
    };
    assert_eq!(status(get("/", &[])), 404);
    assert_eq!(status(get("/overlay-master", &[])), 404);
    assert_eq!(status(get("/overlay-master/stat", &[])), 404);
    assert_eq!(status(get("/overlay-agent/overlay", &[])), 404);
    assert_eq!(status(request("POST", "/overlay-master/state", &[], "")), 405);
    assert_eq!(status(request("DELETE", "/overlay-master/health", &[], "")), 405);
    let response = route_master(&get("/overlay-master/agents/delete", &[])).unwrap_err();
    assert_eq!(response.headers()[ALLOW], "POST");
    assert_eq!(text(&response), "method GET is not allowed: use POST\n");
    assert_eq!(route_agent(&get("/x", &[])).unwrap_err().status(), 404);
    let post = request("POST", "/overlay-agent/overlay", &[], "");
    assert_eq!(route_agent(&post).unwrap_err().status(), 405);
}

#[test]
fn unavailable_reply_has_retry_after() {
    let (_, format) = route_master(&get("/overlay-master/state", &[])).unwrap();
    let reply = MasterReply::Unavailable("the state is being read".to_owned());
    let response = render_master(&reply, &format);
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()[RETRY_AFTER], "2");
    assert_eq!(text(&response), "the state is being read\n");
    assert!(matches!(
        route_agent(&get("/overlay-agent/health", &[])),
        Ok((AgentRequest::Health, _))
    ));
}

/// Characters that a terminal obeys or hides: color, direction of writing, line separator.
const HOSTILE: &str = "\u{1b}[31m\u{9b}\u{202e}\u{2028}\u{200b}\u{e0041}";

#[test]
fn error_quoting_request_is_escaped_and_bounded() {
    let response = error(StatusCode::BAD_REQUEST, &format!("no {HOSTILE}\nsecond line"));
    assert_eq!(
        text(&response),
        "no \\u{1b}[31m\\u{9b}\\u{202e}\\u{2028}\\u{200b}\\u{e0041}\nsecond line\n"
    );
    let response = error(StatusCode::BAD_REQUEST, &"x".repeat(1_000_000));
    assert_eq!(text(&response).chars().count(), 64 * 1024 + 1);

    let body = format!("{{\"agents\":[\"{}\"]}}", HOSTILE.trim_start_matches('\u{1b}'));
    let delete = request("POST", "/overlay-master/agents/delete", &[], &body);
    let refused = route_master(&delete).unwrap_err();
    let network = request("POST", "/overlay-master/preview", &[], &body.replace("agents", HOSTILE));
    let refused_network = route_master(&network).unwrap_err();
    for response in [refused, refused_network] {
        let text = text(&response);
        assert_eq!(response.status(), 400, "{text}");
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{202e}', '\u{2028}']), "{text:?}");
    }
}

#[test]
fn json_with_hostile_text_is_escaped_and_equivalent() {
    let effect = Effect { problems: vec![HOSTILE.to_owned()], ..Effect::default() };
    let answer = |path: &str| {
        let (_, format) = route_master(&request("POST", path, &[], "")).unwrap();
        render_master(&MasterReply::Effect(Box::new(effect.clone())), &format)
    };
    let response = answer("/overlay-master/reload");
    let escaped = r"\u001b[31m\u009b\u202e\u2028\u200b\udb40\udc41";
    assert!(text(&response).contains(escaped), "{:?}", text(&response));
    let read: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(read["problems"][0], HOSTILE);
    // In a script, U+2028 would end the line.
    let response = answer("/overlay-master/reload?jsonp=show");
    assert!(text(&response).contains(escaped), "{:?}", text(&response));
}

#[test]
fn unknown_and_duplicate_keys_of_delete_are_refused() {
    let refused = |body: &str| {
        let request = request("POST", "/overlay-master/agents/delete", &[], body);
        let response = route_master(&request).unwrap_err();
        assert_eq!(response.status(), 400, "{body}");
        text(&response).to_owned()
    };
    let example = "write {\"agents\":[\"10.0.0.1\"]}\n";
    assert_eq!(
        refused(r#"{"agents":["10.0.0.1"],"dryrun":true}"#),
        format!("'dryrun' is no key: did you mean 'dry_run'?: {example}")
    );
    assert_eq!(
        refused(r#"{"agents":["10.0.0.1"],"x":true}"#),
        format!("'x' is no key: the keys here are agents, force, dry_run: {example}")
    );
    assert_eq!(
        refused(r#"{"agents":["10.0.0.1"],"dry_run":true,"dry_run":false}"#),
        format!("'dry_run' is given more than once: keep one of them: {example}")
    );
    for body in [
        r#"{"agents":[],"agents":["10.0.0.1"]}"#,
        r#"{"Agents":["10.0.0.1"]}"#,
        "agents=10.0.0.1&dry_run=true",
    ] {
        refused(body);
    }
}

#[test]
fn unknown_and_duplicate_parameters_are_refused_everywhere() {
    let route = |method: &str, path: &str| {
        let request = request(method, path, &[], "");
        let routed = if path.starts_with("/overlay-agent") {
            route_agent(&request).map(drop)
        } else {
            route_master(&request).map(drop)
        };
        routed.map_err(|response| (response.status().as_u16(), text(&response).to_owned()))
    };
    let endpoints = [
        ("GET", "/overlay-master/state"),
        ("GET", "/overlay-master/health"),
        ("GET", "/overlay-master/metrics"),
        ("GET", "/overlay-master/history"),
        ("POST", "/overlay-master/agents/delete"),
        ("POST", "/overlay-master/preview"),
        ("POST", "/overlay-master/reload"),
        ("GET", "/overlay-agent/overlay"),
        ("GET", "/overlay-agent/health"),
        ("GET", "/overlay-agent/probes"),
        ("GET", "/overlay-agent/addresses"),
        ("GET", "/overlay-agent/metrics"),
    ];
    for (method, path) in endpoints {
        for query in ["dry_run=true", "agnet=10.0.0.1", "=", "jsonp=a&jsonp=b", "%64ry_run"] {
            let (status, reason) = route(method, &format!("{path}?{query}")).unwrap_err();
            assert_eq!(status, 400, "{path}?{query}");
            assert!(reason.starts_with("query: "), "{reason}");
        }
    }
    let reason = |path: &str| route("GET", path).unwrap_err().1;
    assert_eq!(
        reason("/overlay-master/history?agnet=10.0.0.1"),
        "query: 'agnet' is no parameter: did you mean 'agent'?\n"
    );
    assert_eq!(
        reason("/overlay-agent/metrics?x"),
        "query: 'x' is no parameter: this endpoint takes no parameters\n"
    );
    assert_eq!(
        reason("/overlay-master/history?agent=10.0.0.1&agent=10.0.0.2"),
        "query: 'agent' is given more than once: keep one of them\n"
    );
    let cached = "/overlay-master/state?jsonp=jQuery1.cb&_=1481&_timestamp=2";
    assert_eq!(route("GET", cached), Ok(()));
}

#[test]
fn body_of_endpoint_without_body_is_refused() {
    let routed = |method: &str, path: &str, body: &str| {
        let routed = route_master(&request(method, path, &[], body));
        routed.map(|(routed, _)| routed).map_err(|response| text(&response).to_owned())
    };
    let refused = "this endpoint takes no body: send the request without one\n".to_owned();
    let reload = |body: &str| routed("POST", "/overlay-master/reload", body);
    assert_eq!(reload(r#"{"dry_run":true}"#), Err(refused.clone()));
    assert_eq!(reload("dry_run=true"), Err(refused.clone()));
    assert_eq!(reload(" { }\n"), Ok(MasterRequest::Reload));
    assert_eq!(routed("GET", "/overlay-master/state", "{\"agents\":[]}"), Err(refused));
}
