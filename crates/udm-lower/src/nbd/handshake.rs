//! The client's half of the NBD handshake, as a state machine over bytes.
//!
//! Pure: received bytes go in, bytes to send come out. Driven by `open` (on the control side, when
//! a table is loaded) and by `connection` (on a lane, at every reconnect).
//!
//! ```text
//! greeting --> EXTENDED_HEADERS --ack--> GO --ack--> Agreed
//!                  |  error                |  error UNSUP
//!                  v                       v
//!              STRUCTURED_REPLY --> GO    EXPORT_NAME --> Agreed
//! ```
//!
//! Rules. Fixed newstyle only. Options go one after the other, since a server may refuse one that
//! follows another. What the server sends is never trusted: replies are bounded in length and
//! number, and anything unexpected ends the handshake with a reason that can be shown.
//!
//! The tricky case is a server that refuses: its error may carry a text for people, which is passed
//! on without control characters and cut.

use super::wire::{
    EXPORT_NAME_PADDING_BYTES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_MAGIC, HAS_FLAGS,
    HeaderStyle, INFO_BLOCK_SIZE, INFO_EXPORT, OLDSTYLE_MAGIC, OPT_EXPORT_NAME,
    OPT_EXTENDED_HEADERS, OPT_GO, OPT_STRUCTURED_REPLY, OPTION_MAGIC, OPTION_REPLY_MAGIC, REP_ACK,
    REP_ERR_BIT, REP_ERR_POLICY, REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN,
    REP_ERR_UNSUP, REP_INFO, STRING_LEN_BYTES_MAX, be_u16, be_u32, be_u64,
};

/// The longest option reply: a string and the few numbers before it.
const REPLY_LEN_BYTES_MAX: usize = STRING_LEN_BYTES_MAX + 64;
/// Information items of one export; there are four kinds.
const INFOS_MAX: u32 = 64;
/// What a server that does not say takes as payload of a request.
const PAYLOAD_BYTES_DEFAULT: u32 = 32 << 20;
/// The largest block size the protocol allows.
const BLOCK_BYTES_MAX: u32 = 64 << 10;
/// How much of a server's own words is shown.
const WORDS_SHOWN_MAX: usize = 200;

/// What server and client have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// How requests and replies look.
    pub(super) style: HeaderStyle,
    /// Size of the export.
    pub(super) size_bytes: u64,
    /// What it can do (`SEND_*` and others).
    pub(super) flags: u16,
    /// Smallest unit of offsets and lengths.
    pub(super) block_bytes_min: u32,
    /// Unit the server prefers.
    pub(super) block_bytes_preferred: u32,
    /// Largest payload of a read or write.
    pub(super) payload_bytes_max: u32,
}

impl Agreed {
    /// True if every one of these bits is set.
    pub(super) fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

/// What came of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More bytes are needed.
    NeedMore,
    /// Call again.
    Continue,
    /// Requests may be sent.
    Agreed(Agreed),
    /// This server will not do; the reason, for people.
    Failed(String),
}

/// A handshake under way.
#[derive(Debug)]
pub(super) struct Handshake {
    export: String,
    stage: Stage,
    agreed: Agreed,
    no_zeroes: bool,
    infos: u32,
    /// The size has been told.
    has_export: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    /// An option with replies was sent.
    Option(u32),
    /// `EXPORT_NAME` was sent: its answer has another form.
    ExportName,
    Over,
}

impl Handshake {
    /// A handshake for an export.
    pub(super) fn new(export: &str) -> Handshake {
        Handshake {
            export: export.to_owned(),
            stage: Stage::Greeting,
            agreed: Agreed {
                style: HeaderStyle::Simple,
                size_bytes: 0,
                flags: 0,
                block_bytes_min: 1,
                block_bytes_preferred: 4096,
                payload_bytes_max: PAYLOAD_BYTES_DEFAULT,
            },
            no_zeroes: false,
            infos: 0,
            has_export: false,
        }
    }

    /// Looks at the bytes received; how many are done with, and what came of it. What is to be
    /// sent is appended to `out`.
    pub(super) fn step(&mut self, window: &[u8], out: &mut Vec<u8>) -> (usize, Progress) {
        match self.stage {
            Stage::Greeting => self.greeting(window, out),
            Stage::Option(option) => self.option_reply(option, window, out),
            Stage::ExportName => self.export_name_reply(window),
            Stage::Over => (0, failed("bytes after the end of the handshake")),
        }
    }

    fn greeting(&mut self, window: &[u8], out: &mut Vec<u8>) -> (usize, Progress) {
        if window.len() >= 8 && be_u64(window) != GREETING_MAGIC {
            return (0, failed("this is not an NBD server"));
        }
        if window.len() >= 16 && be_u64(&window[8..]) == OLDSTYLE_MAGIC {
            return (0, failed("the server speaks the old protocol without exports"));
        }
        if window.len() < 18 {
            return (0, Progress::NeedMore);
        }
        let flags = be_u16(&window[16..]);
        if be_u64(&window[8..]) != OPTION_MAGIC || flags & FLAG_FIXED_NEWSTYLE == 0 {
            return (0, failed("the server does not speak the fixed newstyle protocol"));
        }
        self.no_zeroes = flags & FLAG_NO_ZEROES != 0;
        let ours = flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        out.extend_from_slice(&u32::from(ours).to_be_bytes());
        self.send_option(OPT_EXTENDED_HEADERS, &[], out);
        (18, Progress::Continue)
    }

    fn send_option(&mut self, option: u32, body: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&option.to_be_bytes());
        // Bodies are an export's name and a few bytes.
        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
        out.extend_from_slice(body);
        self.stage = match option {
            OPT_EXPORT_NAME => Stage::ExportName,
            _ => Stage::Option(option),
        };
    }

    fn send_go(&mut self, out: &mut Vec<u8>) {
        let mut body = (self.export.len() as u32).to_be_bytes().to_vec();
        body.extend_from_slice(self.export.as_bytes());
        body.extend_from_slice(&1_u16.to_be_bytes());
        body.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
        self.send_option(OPT_GO, &body, out);
    }

    fn option_reply(&mut self, option: u32, window: &[u8], out: &mut Vec<u8>) -> (usize, Progress) {
        if window.len() < 20 {
            return (0, Progress::NeedMore);
        }
        if be_u64(window) != OPTION_REPLY_MAGIC || be_u32(&window[8..]) != option {
            return (0, failed("the server broke the protocol: not a reply to our option"));
        }
        let (kind, len) = (be_u32(&window[12..]), be_u32(&window[16..]) as usize);
        if len > REPLY_LEN_BYTES_MAX {
            return (0, failed("the server broke the protocol: an endless option reply"));
        }
        let Some(body) = window[20..].get(..len) else { return (0, Progress::NeedMore) };
        (20 + len, self.take_reply(option, kind, body, out))
    }

    fn take_reply(&mut self, option: u32, kind: u32, body: &[u8], out: &mut Vec<u8>) -> Progress {
        match (option, kind) {
            (OPT_EXTENDED_HEADERS, REP_ACK) => {
                self.agreed.style = HeaderStyle::Extended;
                self.send_go(out);
            }
            (OPT_EXTENDED_HEADERS, kind) if is_refusal(kind) => {
                self.send_option(OPT_STRUCTURED_REPLY, &[], out);
            }
            (OPT_STRUCTURED_REPLY, REP_ACK) => {
                self.agreed.style = HeaderStyle::Structured;
                self.send_go(out);
            }
            (OPT_STRUCTURED_REPLY, kind) if is_refusal(kind) => self.send_go(out),
            (OPT_GO, REP_INFO) => return self.info(body),
            (OPT_GO, REP_ACK) if self.has_export => return self.over(),
            (OPT_GO, REP_ERR_UNSUP) => {
                let export = std::mem::take(&mut self.export);
                self.send_option(OPT_EXPORT_NAME, export.as_bytes(), out);
            }
            (_, kind) if kind & REP_ERR_BIT != 0 => return self.refused(kind, body),
            _ => return failed("the server broke the protocol: an option reply out of place"),
        }
        Progress::Continue
    }

    fn info(&mut self, body: &[u8]) -> Progress {
        self.infos += 1;
        let bad = || failed("the server broke the protocol: a malformed description");
        if self.infos > INFOS_MAX || body.len() < 2 {
            return bad();
        }
        match (be_u16(body), body.len()) {
            (INFO_EXPORT, 12) => {
                self.agreed.size_bytes = be_u64(&body[2..]);
                self.agreed.flags = be_u16(&body[10..]);
                self.has_export = true;
            }
            (INFO_BLOCK_SIZE, 14) => {
                let (min, preferred) = (be_u32(&body[2..]), be_u32(&body[6..]));
                let max = be_u32(&body[10..]);
                let fine = min.is_power_of_two()
                    && min <= BLOCK_BYTES_MAX
                    && preferred.is_power_of_two()
                    && preferred >= min
                    && max >= min;
                if !fine {
                    return failed("the server broke the protocol: impossible block sizes");
                }
                self.agreed.block_bytes_min = min;
                self.agreed.block_bytes_preferred = preferred;
                self.agreed.payload_bytes_max = max;
            }
            (INFO_EXPORT | INFO_BLOCK_SIZE, _) => return bad(),
            // Names and descriptions are for people who list exports.
            (_, _) => {}
        }
        Progress::Continue
    }

    fn export_name_reply(&mut self, window: &[u8]) -> (usize, Progress) {
        let len = 10 + if self.no_zeroes { 0 } else { EXPORT_NAME_PADDING_BYTES };
        if window.len() < len {
            return (0, Progress::NeedMore);
        }
        self.agreed.size_bytes = be_u64(window);
        self.agreed.flags = be_u16(&window[8..]);
        (len, self.over())
    }

    fn over(&mut self) -> Progress {
        self.stage = Stage::Over;
        if self.agreed.flags & HAS_FLAGS == 0 {
            // Without that bit the others mean nothing.
            self.agreed.flags = 0;
        }
        Progress::Agreed(self.agreed)
    }

    fn refused(&self, kind: u32, body: &[u8]) -> Progress {
        let what = match kind {
            REP_ERR_UNKNOWN if self.export.is_empty() => "the server has no default export".into(),
            REP_ERR_UNKNOWN => format!("the server has no export '{}'", self.export),
            REP_ERR_POLICY => "the server's settings forbid it".into(),
            REP_ERR_TLS_REQD => "the server wants TLS, which is not supported".into(),
            REP_ERR_SHUTDOWN => "the server is shutting down".into(),
            kind => format!("the server refused (option error {})", kind & !REP_ERR_BIT),
        };
        let words: String = String::from_utf8_lossy(body)
            .chars()
            .filter(|character| !character.is_control())
            .take(WORDS_SHOWN_MAX)
            .collect();
        Progress::Failed(if words.is_empty() { what } else { format!("{what}: {words}") })
    }
}

/// True for an error that only says that the option is not to be had.
fn is_refusal(kind: u32) -> bool {
    kind & REP_ERR_BIT != 0 && !matches!(kind, REP_ERR_TLS_REQD | REP_ERR_SHUTDOWN)
}

fn failed(what: &str) -> Progress {
    Progress::Failed(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::wire::{
        FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_MAGIC, HAS_FLAGS, HeaderStyle, INFO_EXPORT,
        OLDSTYLE_MAGIC, OPT_EXTENDED_HEADERS, OPT_GO, OPT_STRUCTURED_REPLY, OPTION_MAGIC,
        OPTION_REPLY_MAGIC, REP_ACK, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, SEND_FLUSH,
    };
    use super::{Agreed, Handshake, Progress};

    fn greeting(flags: u16) -> Vec<u8> {
        let mut bytes = GREETING_MAGIC.to_be_bytes().to_vec();
        bytes.extend(OPTION_MAGIC.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes
    }

    fn reply(option: u32, kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn export_info(size: u64) -> Vec<u8> {
        let mut body = INFO_EXPORT.to_be_bytes().to_vec();
        body.extend(size.to_be_bytes());
        body.extend((HAS_FLAGS | SEND_FLUSH).to_be_bytes());
        reply(OPT_GO, REP_INFO, &body)
    }

    fn block_info(min: u32, preferred: u32, max: u32) -> Vec<u8> {
        let mut body = 3_u16.to_be_bytes().to_vec();
        [min, preferred, max].iter().for_each(|size| body.extend(size.to_be_bytes()));
        reply(OPT_GO, REP_INFO, &body)
    }

    /// Feeds everything, a byte more at a time; the end and how many bytes were left.
    fn feed(bytes: &[u8]) -> (Progress, usize) {
        let (mut handshake, mut out) = (Handshake::new("disk"), Vec::new());
        let (mut start, mut end) = (0, 0);
        loop {
            let (consumed, progress) = handshake.step(&bytes[start..end], &mut out);
            start += consumed;
            match progress {
                Progress::NeedMore if end == bytes.len() => return (progress, 0),
                Progress::NeedMore => end += 1,
                Progress::Continue => {}
                Progress::Agreed(_) | Progress::Failed(_) => {
                    return (progress, bytes.len() - start);
                }
            }
        }
    }

    fn agreed(bytes: &[u8]) -> Agreed {
        match feed(bytes).0 {
            Progress::Agreed(agreed) => agreed,
            other => panic!("{other:?}"),
        }
    }

    const NEWSTYLE: u16 = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES;

    #[test]
    fn the_best_style_the_server_has_is_taken() {
        let go = [export_info(1 << 20), reply(OPT_GO, REP_ACK, b"")].concat();
        let no = |option| reply(option, REP_ERR_UNSUP, b"no");
        let ack = |option| reply(option, REP_ACK, b"");
        let extended = [greeting(NEWSTYLE), ack(OPT_EXTENDED_HEADERS), go.clone()].concat();
        assert_eq!(agreed(&extended).style, HeaderStyle::Extended);
        let no_extended = [greeting(NEWSTYLE), no(OPT_EXTENDED_HEADERS)].concat();
        let structured = [no_extended.clone(), ack(OPT_STRUCTURED_REPLY), go.clone()].concat();
        assert_eq!(agreed(&structured).style, HeaderStyle::Structured);
        let simple = [no_extended, no(OPT_STRUCTURED_REPLY), go].concat();
        let agreed = agreed(&simple);
        assert_eq!((agreed.style, agreed.size_bytes), (HeaderStyle::Simple, 1 << 20));
        assert_eq!((agreed.block_bytes_min, agreed.payload_bytes_max), (1, 32 << 20));
        assert!(agreed.has(SEND_FLUSH));
    }

    #[test]
    fn a_server_without_go_is_asked_by_export_name() {
        for flags in [NEWSTYLE, FLAG_FIXED_NEWSTYLE] {
            let mut bytes = greeting(flags);
            for option in [OPT_EXTENDED_HEADERS, OPT_STRUCTURED_REPLY, OPT_GO] {
                bytes.extend(reply(option, REP_ERR_UNSUP, b""));
            }
            bytes.extend(4096_u64.to_be_bytes());
            bytes.extend((HAS_FLAGS | SEND_FLUSH).to_be_bytes());
            let padding = if flags == NEWSTYLE { 0 } else { 124 };
            bytes.extend(vec![0; padding]);
            assert_eq!(agreed(&bytes).size_bytes, 4096);
            assert_eq!(feed(&bytes).1, 0, "the padding is eaten");
        }
    }

    #[test]
    fn a_refusal_says_why_in_the_words_of_the_server() {
        let unknown = reply(OPT_GO, REP_ERR_UNKNOWN, b"try \x1b[31m'vol'");
        let bytes = [greeting(NEWSTYLE), reply(OPT_EXTENDED_HEADERS, REP_ACK, b""), unknown];
        let Progress::Failed(why) = feed(&bytes.concat()).0 else { panic!("it must fail") };
        assert_eq!(why, "the server has no export 'disk': try [31m'vol'");
    }

    #[test]
    fn what_breaks_the_protocol_ends_it() {
        let ack = [greeting(NEWSTYLE), reply(OPT_EXTENDED_HEADERS, REP_ACK, b"")].concat();
        let mut endless = reply(OPT_GO, REP_INFO, b"");
        endless[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        let mut old = GREETING_MAGIC.to_be_bytes().to_vec();
        old.extend(OLDSTYLE_MAGIC.to_be_bytes());
        for (bytes, part) in [
            (b"SSH-2.0-OpenSSH".to_vec(), "not an NBD server"),
            (old, "old protocol"),
            (greeting(0), "fixed newstyle"),
            ([greeting(NEWSTYLE), reply(OPT_GO, REP_ACK, b"")].concat(), "not a reply"),
            ([ack.clone(), reply(OPT_GO, REP_ACK, b"")].concat(), "out of place"),
            ([ack.clone(), endless].concat(), "endless"),
            ([ack.clone(), reply(OPT_GO, REP_INFO, b"\0\0")].concat(), "malformed"),
            ([ack.clone(), block_info(3, 4096, 4096)].concat(), "block sizes"),
            ([ack.clone(), block_info(512, 256, 4096)].concat(), "block sizes"),
            ([ack, vec![block_info(1, 1, 1); 65].concat()].concat(), "malformed"),
        ] {
            let Progress::Failed(why) = feed(&bytes).0 else { panic!("{part}") };
            assert!(why.contains(part), "{why}");
        }
    }
}
