//! Tests of the handshake: every option, both sides of every limit, hostile clients.

use super::{
    Agreed, EndReason, Negotiation, OPTION_BYTES_MAX, OPTIONS_MAX, Progress, TlsPolicy, greeting,
};
use crate::nbd::export::{ExportDescription, ExportList};
use crate::nbd::wire::{
    HeaderStyle, OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO, OPT_LIST,
    OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY, REP_ACK,
    REP_ERR_EXT_HEADER_REQD, REP_ERR_INVALID, REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN,
    REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT, REP_SERVER,
};
use udm_types::QueueLimits;

struct Exports(&'static [&'static str]);

impl ExportList for Exports {
    fn lookup(&self, name: &str) -> Option<ExportDescription> {
        self.0.contains(&name).then(|| ExportDescription {
            name: name.into(),
            description: format!("about {name}"),
            size_bytes: 1 << 20,
            limits: QueueLimits { logical_block_bytes: 4096, ..QueueLimits::default() },
            read_only: false,
        })
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|name| (*name).to_owned()).collect()
    }
}

const TWO: Exports = Exports(&["vol", "other"]);
const ONE: Exports = Exports(&["vol"]);

fn option(number: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn info_body(name: &str, items: &[u16]) -> Vec<u8> {
    let mut body = string(name);
    body.extend((items.len() as u16).to_be_bytes());
    body.extend(items.iter().flat_map(|item| item.to_be_bytes()));
    body
}

fn meta_body(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut body = string(name);
    body.extend((queries.len() as u32).to_be_bytes());
    body.extend(queries.iter().flat_map(|query| string(query)));
    body
}

/// A fixed-newstyle client that talks to a handshake.
struct Client {
    negotiation: Negotiation,
    exports: Exports,
}

/// An option reply: option, type, data.
type Reply = (u32, u32, Vec<u8>);

impl Client {
    fn new(exports: Exports) -> Client {
        let mut client = Client { negotiation: Negotiation::new(TlsPolicy::Off), exports };
        assert_eq!(client.send(&3_u32.to_be_bytes()), (Vec::new(), Progress::Continue));
        client
    }

    fn send(&mut self, bytes: &[u8]) -> (Vec<u8>, Progress) {
        let mut out = Vec::new();
        let (consumed, progress) = self.negotiation.step(bytes, &self.exports, &mut out);
        if progress != Progress::NeedMore {
            assert_eq!(consumed, bytes.len());
        }
        (out, progress)
    }

    fn ask(&mut self, number: u32, body: &[u8]) -> (Vec<Reply>, Progress) {
        let (out, progress) = self.send(&option(number, body));
        (replies(&out), progress)
    }

    /// The type of the only reply to an option.
    fn only(&mut self, number: u32, body: &[u8]) -> u32 {
        let (replies, _) = self.ask(number, body);
        assert_eq!(replies.len(), 1, "one reply: {replies:?}");
        assert_eq!(replies[0].0, number);
        replies[0].1
    }

    fn go(&mut self, name: &str) -> Agreed {
        match self.ask(OPT_GO, &info_body(name, &[])).1 {
            Progress::Agreed(agreed) => *agreed,
            other => panic!("not agreed: {other:?}"),
        }
    }
}

fn replies(mut bytes: &[u8]) -> Vec<Reply> {
    let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[..8], 0x3_e889_0455_65a9_u64.to_be_bytes());
        let len = word(&bytes[16..20]) as usize;
        replies.push((word(&bytes[8..12]), word(&bytes[12..16]), bytes[20..20 + len].to_vec()));
        bytes = &bytes[20 + len..];
    }
    replies
}

#[test]
fn the_greeting_is_byte_exact() {
    assert_eq!(greeting(), *b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn go_describes_the_export_and_starts() {
    let mut client = Client::new(TWO);
    let (replies, progress) = client.ask(OPT_GO, &info_body("vol", &[3, 1, 2, 999, 1]));
    let kinds: Vec<u32> = replies.iter().map(|reply| reply.1).collect();
    assert_eq!(kinds, [REP_INFO, REP_INFO, REP_INFO, REP_INFO, REP_ACK]);
    assert_eq!(replies[0].2, *b"\0\0\0\0\0\0\0\x10\0\0\x0d\x6d");
    assert_eq!(replies[1].2, *b"\0\x01vol");
    assert_eq!(replies[2].2, *b"\0\x02about vol");
    assert_eq!(replies[3].2, *b"\0\x03\0\0\x10\0\0\0\x10\0\x02\0\0\0");
    let Progress::Agreed(agreed) = progress else { panic!("agreed") };
    assert_eq!((agreed.export.name.as_str(), agreed.style), ("vol", HeaderStyle::Simple));
    assert!(!agreed.allocation_selected);
}

#[test]
fn info_describes_and_does_not_start() {
    let mut client = Client::new(TWO);
    let (replies, progress) = client.ask(OPT_INFO, &info_body("vol", &[]));
    assert_eq!(replies.iter().map(|reply| reply.1).collect::<Vec<_>>(), [REP_INFO, REP_ACK]);
    assert_eq!(progress, Progress::Continue);
}

#[test]
fn unknown_and_default_names() {
    for number in [OPT_INFO, OPT_GO] {
        let mut client = Client::new(TWO);
        assert_eq!(client.only(number, &info_body("nope", &[])), REP_ERR_UNKNOWN);
        assert_eq!(client.only(number, &info_body("", &[])), REP_ERR_UNKNOWN, "two exports");
    }
    assert_eq!(Client::new(ONE).go("").export.name, "vol");
    assert_eq!(Client::new(Exports(&[])).only(OPT_INFO, &info_body("", &[])), REP_ERR_UNKNOWN);
}

#[test]
fn export_name_with_and_without_padding() {
    for (flags, padding) in [(3_u32, 0), (1, 124), (0, 124), (2, 0)] {
        let mut client = Client { negotiation: Negotiation::new(TlsPolicy::Off), exports: TWO };
        client.send(&flags.to_be_bytes());
        let (out, progress) = client.send(&option(OPT_EXPORT_NAME, b"vol"));
        assert_eq!(out.len(), 10 + padding, "client flags {flags}");
        assert_eq!(out[..10], *b"\0\0\0\0\0\x10\0\0\x0d\x6d");
        assert!(out[10..].iter().all(|byte| *byte == 0));
        assert!(matches!(progress, Progress::Agreed(_)));
    }
}

#[test]
fn export_name_has_no_errors_so_it_ends() {
    for name in [&b"nope"[..], b"", b"\xff", b"v\0l", &[b'x'; 4097]] {
        let (replies, progress) = Client::new(TWO).ask(OPT_EXPORT_NAME, name);
        assert_eq!((replies.len(), progress), (0, Progress::Ended(EndReason::NoSuchExport)));
    }
    let mut client = Client::new(TWO);
    client.ask(OPT_EXTENDED_HEADERS, b"");
    assert_eq!(
        client.ask(OPT_EXPORT_NAME, b"vol").1,
        Progress::Ended(EndReason::OutOfPlace(OPT_EXPORT_NAME))
    );
}

#[test]
fn a_client_without_fixed_newstyle_may_only_name_an_export() {
    let mut client = Client { negotiation: Negotiation::new(TlsPolicy::Off), exports: TWO };
    client.send(&0_u32.to_be_bytes());
    assert_eq!(client.ask(OPT_LIST, b"").1, Progress::Ended(EndReason::OutOfPlace(OPT_LIST)));
}

#[test]
fn list_shows_names_and_descriptions() {
    let (replies, progress) = Client::new(TWO).ask(OPT_LIST, b"");
    assert_eq!(progress, Progress::Continue);
    assert_eq!(
        replies,
        [
            (OPT_LIST, REP_SERVER, b"\0\0\0\x03volabout vol".to_vec()),
            (OPT_LIST, REP_SERVER, b"\0\0\0\x05otherabout other".to_vec()),
            (OPT_LIST, REP_ACK, Vec::new()),
        ]
    );
}

#[test]
fn abort_is_acknowledged_and_ends_even_in_shutdown() {
    for shutting_down in [false, true] {
        let mut client = Client::new(TWO);
        if shutting_down {
            client.negotiation.shut_down();
        }
        let (replies, progress) = client.ask(OPT_ABORT, b"whatever");
        assert_eq!(replies, [(OPT_ABORT, REP_ACK, Vec::new())]);
        assert_eq!(progress, Progress::Ended(EndReason::Aborted));
        assert_eq!(client.send(b"").1, Progress::Ended(EndReason::Aborted), "for good");
    }
}

#[test]
fn tls_comes_first_where_it_is_required() {
    let mut client = Client::new(TWO);
    client.negotiation = Negotiation::new(TlsPolicy::Required);
    assert_eq!(client.send(&3_u32.to_be_bytes()).1, Progress::Continue);
    for number in [OPT_LIST, OPT_STRUCTURED_REPLY, OPT_GO, 99] {
        assert_eq!(client.only(number, b""), REP_ERR_TLS_REQD);
    }
    assert_eq!(client.only(OPT_STARTTLS, b"data"), REP_ERR_INVALID);
    assert_eq!(client.ask(OPT_STARTTLS, b"").1, Progress::StartTls);
    assert_eq!(client.only(OPT_STARTTLS, b""), REP_ERR_INVALID);
    assert_eq!(client.go("vol").export.name, "vol");
}

#[test]
fn tls_forgets_what_was_agreed_on() {
    let mut client = Client::new(TWO);
    client.negotiation = Negotiation::new(TlsPolicy::Allowed);
    assert_eq!(client.send(&3_u32.to_be_bytes()).1, Progress::Continue);
    assert_eq!(client.only(OPT_STRUCTURED_REPLY, b""), REP_ACK);
    let select = meta_body("vol", &["base:allocation"]);
    assert_eq!(client.ask(OPT_SET_META_CONTEXT, &select).0.len(), 2);
    assert_eq!(client.ask(OPT_STARTTLS, b"").1, Progress::StartTls);
    let agreed = client.go("vol");
    assert!(agreed.style == HeaderStyle::Simple && !agreed.allocation_selected);
    // Without fixed newstyle, and without TLS, there is no way to say what is missing.
    let mut client = Client { negotiation: Negotiation::new(TlsPolicy::Required), exports: TWO };
    assert_eq!(client.send(&0_u32.to_be_bytes()).1, Progress::Continue);
    let progress = client.ask(OPT_EXPORT_NAME, b"vol").1;
    assert_eq!(progress, Progress::Ended(EndReason::OutOfPlace(OPT_EXPORT_NAME)));
}

#[test]
fn unknown_options_and_tls_are_unsupported_and_harmless() {
    let mut client = Client::new(TWO);
    for number in [OPT_STARTTLS, 0, 4, 12, u32::MAX] {
        assert_eq!(client.only(number, b"data of it"), REP_ERR_UNSUP);
    }
    assert_eq!(client.go("vol").export.name, "vol");
}

#[test]
fn options_without_data_refuse_data() {
    let mut client = Client::new(TWO);
    for number in [OPT_LIST, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS] {
        assert_eq!(client.only(number, b"x"), REP_ERR_INVALID);
    }
    assert_eq!(client.go("vol").style, HeaderStyle::Simple, "nothing was switched on");
}

#[test]
fn malformed_options_are_invalid_and_harmless() {
    let mut client = Client::new(TWO);
    client.ask(OPT_STRUCTURED_REPLY, b"");
    for number in [OPT_INFO, OPT_GO, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
        for body in [&b""[..], b"\0\0\0\x05vol", b"\xff\xff\xff\xff", b"\0\0\0\x03vol\0"] {
            assert_eq!(client.only(number, body), REP_ERR_INVALID, "option {number}");
        }
    }
    assert_eq!(client.go("vol").style, HeaderStyle::Structured);
}

#[test]
fn header_styles_only_go_up() {
    let mut client = Client::new(TWO);
    assert_eq!(client.only(OPT_STRUCTURED_REPLY, b""), REP_ACK);
    assert_eq!(client.only(OPT_STRUCTURED_REPLY, b""), REP_ACK);
    assert_eq!(client.only(OPT_EXTENDED_HEADERS, b""), REP_ACK);
    assert_eq!(client.only(OPT_STRUCTURED_REPLY, b""), REP_ERR_EXT_HEADER_REQD);
    assert_eq!(client.only(OPT_EXTENDED_HEADERS, b""), REP_ACK);
    assert_eq!(client.go("vol").style, HeaderStyle::Extended);
}

#[test]
fn contexts_need_structured_replies_first() {
    let mut client = Client::new(TWO);
    for number in [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
        let body = meta_body("vol", &["base:allocation"]);
        assert_eq!(client.only(number, &body), REP_ERR_INVALID);
    }
}

#[test]
fn contexts_are_listed_by_query() {
    let mut client = Client::new(TWO);
    client.ask(OPT_STRUCTURED_REPLY, b"");
    let table: [(&[&str], bool); 6] = [
        (&[], true),
        (&["base:"], true),
        (&["x:y", "base:allocation"], true),
        (&["base:other"], false),
        (&["qemu:"], false),
        (&["base"], false),
    ];
    for (queries, found) in table {
        let (replies, _) = client.ask(OPT_LIST_META_CONTEXT, &meta_body("vol", queries));
        let expected = b"\0\0\0\0base:allocation".to_vec();
        assert_eq!(replies[0].2 == expected, found, "{queries:?}");
        assert_eq!(replies.last().map(|reply| reply.1), Some(REP_ACK));
    }
    assert_eq!(client.only(OPT_LIST_META_CONTEXT, &meta_body("nope", &[])), REP_ERR_UNKNOWN);
}

#[test]
fn contexts_are_selected_for_one_export_name() {
    let select = |client: &mut Client, name: &str, queries: &[&str]| {
        client.ask(OPT_SET_META_CONTEXT, &meta_body(name, queries)).0
    };
    let structured = |exports| {
        let mut client = Client::new(exports);
        client.ask(OPT_STRUCTURED_REPLY, b"");
        client
    };
    let mut client = structured(TWO);
    let replies = select(&mut client, "vol", &["base:allocation", "base:allocation"]);
    assert_eq!(
        replies,
        [
            (OPT_SET_META_CONTEXT, REP_META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec()),
            (OPT_SET_META_CONTEXT, REP_ACK, Vec::new()),
        ]
    );
    assert!(client.go("vol").allocation_selected);

    let mut client = structured(TWO);
    select(&mut client, "vol", &["base:allocation"]);
    assert!(!client.go("other").allocation_selected, "another export");

    for later in [&["base:"][..], &[]] {
        let mut client = structured(TWO);
        select(&mut client, "vol", &["base:allocation"]);
        assert_eq!(select(&mut client, "vol", later).len(), 1, "selects nothing");
        assert!(!client.go("vol").allocation_selected, "replaced");
    }

    let mut client = structured(TWO);
    select(&mut client, "vol", &["base:allocation"]);
    assert_eq!(client.only(OPT_SET_META_CONTEXT, b"junk"), REP_ERR_INVALID);
    assert!(!client.go("vol").allocation_selected, "a failure clears it too");

    let mut client = structured(ONE);
    select(&mut client, "", &["base:allocation"]);
    assert!(client.go("vol").allocation_selected, "the default export is that export");
}

#[test]
fn a_server_shutting_down_says_so() {
    let mut client = Client::new(TWO);
    client.negotiation.shut_down();
    for number in [OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY, 99] {
        assert_eq!(client.only(number, b""), REP_ERR_SHUTDOWN);
    }
    assert_eq!(client.ask(OPT_EXPORT_NAME, b"vol").1, Progress::Ended(EndReason::NoSuchExport));
}

#[test]
fn breaches_end_the_handshake() {
    for flags in [4_u32, u32::MAX, 1 << 16] {
        let mut client = Client { negotiation: Negotiation::new(TlsPolicy::Off), exports: TWO };
        assert_eq!(
            client.send(&flags.to_be_bytes()).1,
            Progress::Ended(EndReason::UnknownClientFlags(flags))
        );
    }
    let mut client = Client::new(TWO);
    let mut garbage = option(OPT_LIST, b"");
    garbage[0] = b'X';
    let (_, progress) = client.send(&garbage);
    assert!(matches!(progress, Progress::Ended(EndReason::BadMagic(_))));
}

#[test]
fn an_option_as_long_as_allowed_is_read_and_one_byte_more_is_not() {
    let mut client = Client::new(TWO);
    assert_eq!(client.only(99, &vec![0; OPTION_BYTES_MAX]), REP_ERR_UNSUP);
    let too_long = OPTION_BYTES_MAX as u32 + 1;
    let mut head = option(99, b"");
    head[12..].copy_from_slice(&too_long.to_be_bytes());
    assert_eq!(client.send(&head).1, Progress::Ended(EndReason::OptionTooLong(too_long)));
}

#[test]
fn only_so_many_options() {
    let mut client = Client::new(TWO);
    for _ in 0..OPTIONS_MAX {
        assert_eq!(client.only(99, b""), REP_ERR_UNSUP);
    }
    assert_eq!(client.ask(99, b"").1, Progress::Ended(EndReason::TooManyOptions));
}

#[test]
fn an_incomplete_option_waits_and_consumes_nothing() {
    let mut client = Client::new(TWO);
    let whole = option(OPT_GO, &info_body("vol", &[3]));
    for cut in 0..whole.len() {
        assert_eq!(client.send(&whole[..cut]), (Vec::new(), Progress::NeedMore));
    }
    assert!(matches!(client.send(&whole).1, Progress::Agreed(_)));
}
