//! Tests of the files of credentials: formats, messages, and that nothing repeats a secret.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use overlay_types::protocol::{AuthenticationMode, SharedSecret};
use proptest::prelude::*;

use super::credential::{
    Credential, Credentials, LIST, ONE, WORD_MAX, credential_mode_warning, credential_path, digest,
    parse_agent_credential, parse_shared_secrets,
};
use super::{parse_agent, parse_master};

const SECRET: &str = "Wr0ng-Horse-77";

fn refuse_one(text: &str) -> String {
    Credential::parse(text).unwrap_err().to_string()
}

fn refuse_list(text: &str) -> String {
    Credentials::parse(text).unwrap_err().to_string()
}

#[test]
fn single_credential_is_read_in_both_formats() {
    let expected = Credential { principal: "operator".to_owned(), secret: SECRET.to_owned() };
    for text in [
        format!(r#"{{"principal": "operator", "secret": "{SECRET}"}}"#),
        format!("\u{feff}\n{{\"secret\":\"{SECRET}\",\"principal\":\"operator\"}}\n"),
        format!("operator {SECRET}\n"),
        format!("\n  operator\t{SECRET}  \r\n\n"),
    ] {
        assert_eq!(Credential::parse(&text), Ok(expected.clone()), "{text}");
    }
    // RFC 7617, section 2.
    let aladdin = Credential::parse("Aladdin opensesame").unwrap();
    assert_eq!(aladdin.basic_authorization(), "Basic QWxhZGRpbjpvcGVuc2VzYW1l");
}

#[test]
fn credentials_are_read_in_both_formats() {
    let json = r#"{"credentials": [
        {"principal": "reader", "secret": "a b:c"}, {"principal": "writer", "secret": "ü"}]}"#;
    let json = Credentials::parse(json).unwrap();
    assert_eq!(json.principals().collect::<Vec<_>>(), ["reader", "writer"]);
    let text = Credentials::parse("reader one\n\nwriter two\n").unwrap();
    assert_eq!(text.principals().collect::<Vec<_>>(), ["reader", "writer"]);
}

#[test]
fn authentication_requires_known_principal_and_its_secret() {
    let text = r#"{"credentials": [{"principal": "reader", "secret": "a b:c"},
                                   {"principal": "writer", "secret": "ü"}]}"#;
    let credentials = Credentials::parse(text).unwrap();
    let header = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
    assert_eq!(credentials.authenticate(&header("reader:a b:c")), Some("reader"));
    assert_eq!(credentials.authenticate(&header("writer:ü")), Some("writer"));
    let lower = header("writer:ü").replace("Basic", "basic");
    assert_eq!(credentials.authenticate(&lower), Some("writer"));
    for pair in ["reader:ü", "writer:a b:c", "other:ü", "reader:", "reader", ":", ""] {
        assert_eq!(credentials.authenticate(&header(pair)), None, "{pair}");
    }
    for pair in ["reader:a b:", "reader:a b:c\0", "reader:a b:cc", "Reader:a b:c"] {
        assert_eq!(credentials.authenticate(&header(pair)), None, "{pair}");
    }
    let long = header(&format!("reader:{}", "x".repeat(1_000_000)));
    assert_eq!(credentials.authenticate(&long), None);
    for other in ["", "Basic", "Basic ", "Basic ü!", "Bearer cmVhZGVyOmEgYjpj", "Bäsic x"] {
        assert_eq!(credentials.authenticate(other), None, "{other}");
    }
}

#[test]
fn malformed_credential_is_refused_with_remedy() {
    let cases = [
        ("", format!("it is empty: write {ONE}")),
        (" \n", format!("it is empty: write {ONE}")),
        ("{", format!("line 1, column 1: invalid JSON: write {ONE}")),
        ("{\n x", format!("line 2, column 2: invalid JSON: write {ONE}")),
        ("a b\nc d", format!("it holds several lines: write {ONE}")),
        (
            r#"{"credentials": []}"#,
            format!("it holds a list of credentials, as a master reads it: write {ONE}"),
        ),
        (
            "secret-alone",
            "line 1: it is not a principal and a secret, separated by a space: write these \
             two, or use JSON for names with spaces"
                .to_owned(),
        ),
        ("{}", "credential: it has no text 'principal': write the name".to_owned()),
        (
            r#"{"principal": "a", "secret": 12345678}"#,
            "credential: it has no text 'secret': write the secret".to_owned(),
        ),
        (
            r#"{"principal": "a", "secret": ""}"#,
            "credential: the secret is empty: choose one".to_owned(),
        ),
        (
            "a:b c",
            "line 1: the principal contains a colon, which basic authentication does not \
             allow: choose another name"
                .to_owned(),
        ),
        (
            r#"{"principal": "a", "secret": "b\nc"}"#,
            "credential: it contains a control character, which basic authentication does not \
             allow: choose others"
                .to_owned(),
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refuse_one(text), expected, "{text}");
    }
    let long = format!("a {}", "x".repeat(WORD_MAX + 1));
    assert_eq!(refuse_one(&long), "line 1: it has more than 1024 characters: choose shorter ones");
}

#[test]
fn malformed_list_is_refused_with_remedy() {
    let one = r#"{"principal": "a", "secret": "b"}"#;
    assert_eq!(refuse_list(""), format!("it is empty: write {LIST}"));
    assert_eq!(refuse_list(r#"{"credentials": []}"#), format!("it is empty: write {LIST}"));
    assert_eq!(
        refuse_list(one),
        format!("it holds one credential, as a client reads it: write {LIST}")
    );
    assert_eq!(
        refuse_list(&format!("[{one}]")),
        format!("it holds no list 'credentials': write {LIST}")
    );
    assert_eq!(
        refuse_list(&format!(r#"{{"credentials": [{one}, {{"principal": "b"}}]}}"#)),
        "credentials[1]: it has no text 'secret': write the secret"
    );
    assert_eq!(
        refuse_list(&format!(r#"{{"credentials": [{one}, {one}]}}"#)),
        "credentials[1]: another credential has the same principal: remove one of them"
    );
    assert_eq!(
        refuse_list("a b\n\na c"),
        "line 3: another credential has the same principal: remove one of them"
    );
}

#[test]
fn mode_wider_than_owner_is_reported() {
    let warn = |mode| credential_mode_warning("/etc/credential", mode);
    for mode in [0o100_600, 0o100_400, 0o600, 0] {
        assert_eq!(warn(mode), None, "{mode:o}");
    }
    assert_eq!(
        warn(0o100_644).as_deref(),
        Some(
            "/etc/credential: the file holds secrets, and its mode 0644 is wider than 0600: \
             restrict it with 'chmod 600 /etc/credential'"
        )
    );
    for mode in [0o640, 0o606, 0o620, 0o700] {
        assert!(warn(mode).is_some(), "{mode:o}");
    }
}

#[test]
fn path_may_be_file_url() {
    assert_eq!(credential_path(Path::new("file:///etc/c")), Path::new("/etc/c"));
    assert_eq!(credential_path(Path::new("etc/c")), Path::new("etc/c"));
}

/// A file with a secret in which one edit went wrong.
fn damaged() -> impl Strategy<Value = String> {
    let file = prop_oneof![
        Just(format!(r#"{{"principal": "operator", "secret": "{SECRET}"}}"#)),
        Just(format!(r#"{{"credentials": [{{"principal": "operator", "secret": "{SECRET}"}}]}}"#)),
        Just(format!("operator {SECRET}")),
        Just(SECRET.to_owned()),
        Just(format!(r#"{{"{SECRET}": 1, "principal": {SECRET}}}"#)),
        Just(format!(r#"{{"principal": "{SECRET}", "secret": "{SECRET}", }}"#)),
    ];
    let piece = prop_oneof![
        Just(String::new()),
        "[{}\\[\\]\":, \n\t\u{feff}\u{1}a-c]{0,3}",
        Just(format!(" {SECRET} ")),
    ];
    (file, any::<prop::sample::Index>(), piece, any::<bool>()).prop_map(
        |(file, position, piece, removes)| {
            let at = position.index(file.len());
            let rest = if removes { at + 1 } else { at };
            format!("{}{piece}{}", &file[..at], &file[rest..])
        },
    )
}

proptest! {
    #[test]
    fn no_message_repeats_any_part_of_secret(text in damaged()) {
        let one = Credential::parse(&text);
        let list = Credentials::parse(&text);
        let mut shown = String::new();
        for error in [one.as_ref().err(), list.as_ref().err()].into_iter().flatten() {
            shown.push_str(&format!("{error} {error:?}"));
        }
        for part in ["Wr0ng", "Horse", "-77"] {
            prop_assert!(!shown.contains(part), "{shown}");
        }
    }

    #[test]
    fn debug_output_omits_secret(secret in "[!-~]{8,20}") {
        let one = Credential::parse(&format!("operator {secret}"));
        let list = Credentials::parse(&format!("operator {secret}"));
        let shown = format!("{one:?} {list:?}");
        prop_assert!(!shown.contains(&secret), "{shown}");
    }
}

#[test]
fn credentials_of_server_hold_digests_of_one_length() {
    let credentials = Credentials::parse("reader x\nwriter a-much-longer-secret").unwrap();
    let lengths: Vec<_> = credentials.digests.values().map(|digest| digest.len()).collect();
    assert_eq!(lengths, [32, 32]);
    // SHA-256 of "abc", from FIPS 180-2.
    let abc = digest("abc").map(|byte| format!("{byte:02x}")).concat();
    assert_eq!(abc, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

#[test]
fn repeated_key_is_refused_without_its_value() {
    let twice = format!(r#"{{"principal": "a", "secret": "{SECRET}", "secret": "x"}}"#);
    let expected = format!(
        "line 1, column {}: a key is given more than once: keep one of them",
        twice.rfind(':').unwrap()
    );
    assert_eq!(refuse_one(&twice), expected);
    let lists = r#"{"credentials": [{"principal": "a", "secret": "x"}],
                    "credentials": [{"principal": "b", "secret": "y"}]}"#;
    let error = Credentials::parse(lists).unwrap_err().to_string();
    assert!(error.starts_with("line 2, ") && error.contains("a key is given more"), "{error}");
    let in_list = format!(r#"{{"credentials": [{twice}]}}"#);
    let error = Credentials::parse(&in_list).unwrap_err().to_string();
    assert!(error.contains("a key is given more than once"), "{error}");
    let other = r#"{"principal": "a", "secret": "x", "more": [1, -1, 1.5, true, null, {"a": ""}]}"#;
    assert!(Credential::parse(other).is_ok());
}

#[test]
fn agents_have_one_secret_and_masters_up_to_two_of_a_principal() {
    let agent = parse_agent_credential(&format!("agents {SECRET}")).unwrap();
    assert_eq!(agent.principal.as_str(), "agents");
    assert_eq!(agent.secret, SharedSecret::from_digest(digest(SECRET)));
    assert!(!format!("{agent:?}").contains(SECRET));
    let secrets = parse_shared_secrets(&format!("agents old\nother one\nagents {SECRET}")).unwrap();
    assert_eq!(secrets.of(&agent.principal).len(), 2);
    assert!(secrets.of(&agent.principal).contains(&agent.secret));
    let three = parse_shared_secrets(&format!("a 1\na 2\na {SECRET}")).unwrap_err().to_string();
    let reason = "the principal has more than two secrets: keep the former and the new one";
    assert_eq!(three, format!("line 3: {reason}"));
    let list =
        format!(r#"{{"credentials": [{{"principal": "{}", "secret": "s"}}]}}"#, "p".repeat(256));
    let reason = "the principal of an agent has more than 255 bytes: choose a shorter one";
    let long = parse_shared_secrets(&list).unwrap_err().to_string();
    assert_eq!(long, format!("credentials[0]: {reason}"));
    assert!(Credentials::parse(&list).is_ok(), "clients of the HTTP endpoints may have such names");
}

#[test]
fn authentication_needs_file_and_has_default_mode() {
    let agent = |text: &str| parse_agent("f", text).map(|(config, _)| config.authentication);
    let authentication =
        agent(r#"{"cni_dir":"/c","credential":"file:///etc/c"}"#).unwrap().unwrap();
    assert_eq!(authentication.file, Path::new("/etc/c"));
    assert_eq!(authentication.mode, AuthenticationMode::Required);
    let master = r#"{"network":{"vtep_subnet":"44.128.0.0/16","vtep_mac_oui":"70:B3:D5:00:00:00",
        "overlays":[{"name":"a","subnet":"10.0.0.0/8","prefix":24}]},"credentials":"/c"}"#;
    let (master, _) = parse_master("f", master).unwrap();
    assert_eq!(master.authentication.unwrap().mode, AuthenticationMode::Permitted);
    let problem = |text: &str| agent(text).unwrap_err().to_string();
    assert_eq!(
        problem(r#"{"cni_dir":"/c","authentication":"required"}"#),
        "f:1:34: authentication: has no effect without 'credential': write the path of a file"
    );
    assert_eq!(
        problem(r#"{"cni_dir":"/c","credential":"/c","authentication":"on"}"#),
        r#"f:1:52: authentication: 'on' is not a valid value: write "permitted" or "required""#
    );
}
