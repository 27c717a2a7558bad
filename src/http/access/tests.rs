//! Decisions of the access rules: clients, credentials, lists of principals and host names.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use bytes::Bytes;
use http::header::HOST;

use super::*;

const READ: Access = Access::Read;
const WRITE: Access = Access::Write;

fn tcp(peer: &str) -> RequestSource {
    let local = "10.0.0.1:5050".parse().unwrap();
    RequestSource::Tcp { peer: peer.parse().unwrap(), local }
}

fn request(source: RequestSource, headers: &[(&str, &str)]) -> Request {
    let mut builder = http::Request::post("/overlay-master/reload").extension(source);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Bytes::new()).unwrap()
}

fn of_mesos(principal: Option<&str>, host: &str) -> Request {
    let peer = "10.0.0.9:40000".parse().ok();
    let client = MesosClient { peer, principal: principal.map(str::to_owned) };
    let builder = http::Request::post("/overlay-master/agents/delete").header(HOST, host);
    builder.extension(client).body(Bytes::new()).unwrap()
}

/// Returns the client, or the status and the text of the refusal.
fn decide(rules: &AccessRules, request: &Request, access: Access) -> Result<String, (u16, String)> {
    match rules.authorize(request, access) {
        Ok(author) => Ok(author.to_string()),
        Err(denial) => {
            let response = denial.into_response();
            let text = String::from_utf8(response.body().to_vec()).unwrap();
            Err((response.status().as_u16(), text))
        }
    }
}

fn without_credentials(insecure_writes: bool) -> AccessRules {
    let authentication = Authentication::None { insecure_writes };
    AccessRules { authentication, ..AccessRules::default() }
}

fn listed(principals: &[&str]) -> Principals {
    Principals::Listed(principals.iter().map(|&principal| principal.to_owned()).collect())
}

fn with_credentials(acls: Acls) -> AccessRules {
    let credentials = Credentials::parse("ops secret\nprometheus other").unwrap();
    AccessRules {
        config: HttpConfig { acls, ..HttpConfig::default() },
        authentication: Authentication::Basic { credentials, realms: Realms::MASTER },
        ..AccessRules::default()
    }
}

fn in_mesos(acls: Acls) -> AccessRules {
    let config = HttpConfig { acls, ..HttpConfig::default() };
    AccessRules { config, authentication: Authentication::Mesos, ..AccessRules::default() }
}

fn basic(principal_and_secret: &str) -> (&'static str, String) {
    ("authorization", format!("Basic {}", STANDARD.encode(principal_and_secret)))
}

#[test]
fn without_credentials_only_local_clients_write() {
    let rules = without_credentials(false);
    let host = [("host", "10.0.0.1:5050")];
    for peer in ["127.0.0.1:40000", "127.8.8.8:1", "10.0.0.1:40000", "[::ffff:10.0.0.1]:40000"] {
        let client = decide(&rules, &request(tcp(peer), &host), WRITE).unwrap();
        assert_eq!(client, peer);
    }
    let unix = RequestSource::Unix { user: Some(0) };
    let client = decide(&rules, &request(unix, &[("host", "any.name")]), WRITE).unwrap();
    assert_eq!(client, "Unix socket, user id 0");
    let remote = request(tcp("10.0.0.9:40000"), &host);
    assert_eq!(
        decide(&rules, &remote, WRITE),
        Err((
            403,
            "10.0.0.9 may not write: without --credentials, only clients on the host of this \
             process may: send the request there, or start this process with --credentials FILE, \
             or with --insecure-writes\n"
                .to_owned()
        ))
    );
    assert!(decide(&rules, &remote, READ).is_ok());
    assert!(decide(&without_credentials(true), &remote, WRITE).is_ok());
    for header in
        ["x-forwarded-for", "x-forwarded-proto", "forwarded", "via", "x-real-ip", "x-client-ip"]
    {
        let proxied = request(tcp("127.0.0.1:40000"), &[host[0], (header, "10.0.0.9")]);
        let (status, reason) = decide(&rules, &proxied, WRITE).unwrap_err();
        assert!(status == 403 && reason.starts_with("a client of a proxy may not"), "{reason}");
    }
}

#[test]
fn credentials_authenticate_in_realms_of_mesos() {
    let rules = with_credentials(Acls::default());
    let remote = tcp("10.0.0.9:40000");
    for (access, realm) in [(READ, "mesos-master-readonly"), (WRITE, "mesos-master-readwrite")] {
        let (name, right) = basic("ops:secret");
        let client = decide(&rules, &request(remote, &[(name, &right)]), access);
        assert_eq!(client, Ok("ops from 10.0.0.9:40000".to_owned()));
        let challenge = |headers: &[(&str, &str)]| {
            let denial = rules.authorize(&request(remote, headers), access).unwrap_err();
            let wrong = denial.has_wrong_credentials;
            let response = denial.into_response();
            assert_eq!(response.status(), 401);
            assert_eq!(response.headers()[WWW_AUTHENTICATE], format!("Basic realm=\"{realm}\""));
            wrong
        };
        assert!(!challenge(&[]), "a missing header is no wrong guess");
        for wrong in ["ops:other", "ops:", "other:secret", "opssecret", ""] {
            assert!(challenge(&[(name, &basic(wrong).1)]), "{wrong}");
        }
        assert!(challenge(&[(name, "Bearer secret")]) && challenge(&[(name, "Basic %%%")]));
        assert!(challenge(&[(name, &right), (name, &right)]), "two headers");
        // A local client has no privilege.
        let local = request(tcp("127.0.0.1:1"), &[]);
        assert_eq!(decide(&rules, &local, access).unwrap_err().0, 401);
    }
    let unix = request(RequestSource::Unix { user: None }, &[]);
    assert_eq!(decide(&rules, &unix, WRITE), Ok("Unix socket".to_owned()));
}

#[test]
fn acls_of_program_limit_principals() {
    let acls = Acls { read: Principals::Any, write: listed(&["ops"]) };
    let rules = with_credentials(acls);
    let remote = tcp("10.0.0.9:40000");
    let (name, ops) = basic("ops:secret");
    let (_, prometheus) = basic("prometheus:other");
    assert!(decide(&rules, &request(remote, &[(name, &ops)]), WRITE).is_ok());
    assert_eq!(
        decide(&rules, &request(remote, &[(name, &prometheus)]), WRITE),
        Err((
            403,
            "'prometheus' may not write: 'acls' of the configuration lists the principals that \
             may\n"
                .to_owned()
        ))
    );
    assert!(decide(&rules, &request(remote, &[(name, &prometheus)]), READ).is_ok());
    let anonymous = request(remote, &[("host", "10.0.0.1")]);
    assert_eq!(decide(&rules, &anonymous, WRITE).unwrap_err().0, 401);
    assert!(decide(&rules, &anonymous, READ).is_ok());
    let nobody = with_credentials(Acls { read: listed(&[]), write: listed(&[]) });
    assert_eq!(decide(&nobody, &request(remote, &[(name, &ops)]), READ).unwrap_err().0, 403);
}

#[test]
fn in_mesos_realm_and_acls_decide() {
    let host = "10.0.0.1:5050";
    let open = in_mesos(Acls::default());
    let client = decide(&open, &of_mesos(None, host), WRITE);
    assert_eq!(client, Ok("10.0.0.9:40000".to_owned()));
    let client = decide(&open, &of_mesos(Some("ops"), host), WRITE);
    assert_eq!(client, Ok("ops from 10.0.0.9:40000".to_owned()));
    let acls = Acls { read: Principals::Authenticated, write: listed(&["ops"]) };
    let limited = in_mesos(acls);
    assert!(decide(&limited, &of_mesos(Some("ops"), host), WRITE).is_ok());
    for principal in [Some("other"), Some(""), None] {
        let (status, _) = decide(&limited, &of_mesos(principal, host), WRITE).unwrap_err();
        assert_eq!(status, 403, "{principal:?}");
        assert!(decide(&limited, &of_mesos(principal, host), READ).is_ok());
    }
}

#[test]
fn long_principal_is_shortened_for_log_and_history() {
    let name = format!("ops\n\u{202e}{}", "x".repeat(100_000));
    let acls = Acls { read: Principals::Authenticated, write: listed(&[&name]) };
    let request = of_mesos(Some(&name), "10.0.0.1");
    let author = in_mesos(acls).authorize(&request, WRITE).unwrap();
    let principal = author.principal.unwrap();
    assert!(principal.starts_with("ops") && principal.chars().count() <= PRINCIPAL_MAX);
    assert!(!principal.contains(['\n', '\u{202e}']), "{principal}");
}

#[test]
fn foreign_host_name_is_refused_unless_authenticated() {
    let foreign = [("host", "evil.example:5050")];
    let local = tcp("127.0.0.1:40000");
    for access in [READ, WRITE] {
        assert_eq!(
            decide(&without_credentials(true), &request(local, &foreign), access),
            Err((
                403,
                "'evil.example:5050' is no name of this server: use its IP address, or list the \
                 name in 'hostnames' of the configuration\n"
                    .to_owned()
            ))
        );
        let (name, right) = basic("ops:secret");
        let authenticated = request(local, &[foreign[0], (name, &right)]);
        assert!(decide(&with_credentials(Acls::default()), &authenticated, access).is_ok());
        assert!(
            decide(&in_mesos(Acls::default()), &of_mesos(None, "evil.example"), access).is_err()
        );
        let authenticated = of_mesos(Some("ops"), "evil.example");
        assert!(decide(&in_mesos(Acls::default()), &authenticated, access).is_ok());
    }
    // Two names, or the name in the request line.
    let two = request(local, &[("host", "10.0.0.1"), foreign[0]]);
    assert!(decide(&without_credentials(true), &two, READ).is_err());
    let mut absolute = request(local, &[("host", "10.0.0.1")]);
    *absolute.uri_mut() = "http://evil.example/overlay-master/state".parse().unwrap();
    assert!(decide(&without_credentials(true), &absolute, READ).is_err());
    assert!(decide(&without_credentials(true), &request(local, &[]), READ).is_ok());
    *absolute.uri_mut() = "http://ops:s3cr3t@10.0.0.1/overlay-master/state".parse().unwrap();
    let (status, reason) = decide(&without_credentials(true), &absolute, READ).unwrap_err();
    assert_eq!(status, 403);
    assert!(reason.starts_with("the given text is no name of this server: "), "{reason}");
}
