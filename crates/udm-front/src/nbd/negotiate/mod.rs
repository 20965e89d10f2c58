//! The handshake: from the first byte to the transmission phase.
//!
//! A connection sends [`greeting`], then shows what it receives to [`Negotiation::step`], one step
//! for each option, sending what the step appended to the output in between. The handshake ends
//! with [`Progress::Agreed`] or [`Progress::Ended`]; it touches no device.
//!
//! Rules. A wrong option gets an error reply and the handshake goes on; only what the protocol
//! gives no reply for (unknown client flags, a bad magic, `EXPORT_NAME` of an unknown export) and
//! what would make us hold too much ends it. Nothing is kept of an option but what it changes.
//!
//! ```text
//! ClientFlags --4 bytes--> Options --GO, EXPORT_NAME--> Agreed
//!      |                   |    ^
//!      |                   |    +-- any other option; STARTTLS: as new, but secured
//!      +---- bad flags ----+--------- ABORT, breach --> Ended
//! ```
//!
//! The tricky case: metadata contexts belong to the export name they were selected for. If GO
//! names another export, they are gone, although the client was told they were selected; so the
//! canonical name is remembered with them and compared at the end. A failed SET_META_CONTEXT also
//! clears the earlier selection.

mod options;

use super::export::{ExportDescription, ExportList};
use super::wire::{
    CONTEXT_BASE_ALLOCATION, CONTEXT_ID_BASE_ALLOCATION, EXPORT_NAME_PADDING_BYTES,
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_MAGIC, HeaderStyle, INFO_BLOCK_SIZE,
    INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS,
    OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STARTTLS,
    OPT_STRUCTURED_REPLY, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionHead, OptionReplyHead, REP_ACK,
    REP_ERR_EXT_HEADER_REQD, REP_ERR_INVALID, REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN,
    REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT, REP_SERVER,
};
use options::{InfoRequest, MetaRequest};
use zerocopy::{FromBytes, IntoBytes};

/// Longest option data we receive: a name and a few queries of the protocol's longest string. A
/// client with more is cut off, since we would have to hold it.
pub const OPTION_BYTES_MAX: usize = 32 << 10;

/// Room a connection needs to receive any option we accept.
pub const RECEIVE_BYTES_MIN: usize = OPTION_BYTES_MAX + size_of::<OptionHead>();

/// How many options a client may send. An interactive client asks a few dozen; a handshake that
/// never ends would hold a connection slot for nothing.
pub const OPTIONS_MAX: u32 = 256;

/// What the server says first.
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    bytes
}

/// What client and server agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The chosen export, as it was when the client chose it.
    pub export: ExportDescription,
    /// How requests and replies are framed.
    pub style: HeaderStyle,
    /// Block status may be asked for (`base:allocation`).
    pub allocation_selected: bool,
}

/// Why a handshake ended without an agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The client sent ABORT. What was appended to the output is still to be sent.
    Aborted,
    /// Client flags we did not offer; their value.
    UnknownClientFlags(u32),
    /// An option does not start with its magic number.
    BadMagic(u64),
    /// An option's data is longer than [`OPTION_BYTES_MAX`]; its length.
    OptionTooLong(u32),
    /// More than [`OPTIONS_MAX`] options.
    TooManyOptions,
    /// EXPORT_NAME of an export that does not exist (or not now), which has no error reply.
    NoSuchExport,
    /// An option that this client's earlier choices rule out; the option.
    OutOfPlace(u32),
}

/// What a handshake does about TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsPolicy {
    /// There is none.
    Off,
    /// The client may begin it.
    Allowed,
    /// Nothing else is answered before the client has begun it.
    Required,
}

/// How far the handshake has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not enough bytes; receive more.
    NeedMore,
    /// An option was answered; step again.
    Continue,
    /// STARTTLS was answered: TLS begins with the next byte. Bytes that were received already are
    /// not the client's, which waits for the answer; end the connection if there are any.
    StartTls,
    /// Done: the transmission phase begins with the next byte.
    Agreed(Box<Agreed>),
    /// Over. Send what was appended, then close.
    Ended(EndReason),
}

/// The state of one handshake.
#[derive(Debug)]
pub struct Negotiation {
    stage: Stage,
    style: HeaderStyle,
    /// The canonical name of the export for which `base:allocation` is selected.
    allocation_for: Option<String>,
    options_seen: u32,
    shutting_down: bool,
    tls: TlsPolicy,
    /// Everything goes through TLS.
    is_secured: bool,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The client's flags come next.
    ClientFlags,
    /// Options come.
    Options { fixed: bool, no_zeroes: bool },
    /// Nothing comes any more.
    Ended(EndReason),
}

impl Negotiation {
    /// A handshake whose greeting has been sent.
    pub fn new(tls: TlsPolicy) -> Negotiation {
        Negotiation {
            stage: Stage::ClientFlags,
            style: HeaderStyle::Simple,
            allocation_for: None,
            options_seen: 0,
            shutting_down: false,
            tls,
            is_secured: false,
        }
    }

    /// From now on every option but ABORT is answered with ERR_SHUTDOWN.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Takes at most one option from `received` and appends the answer to `out`. Returns how many
    /// bytes are done with. After [`Progress::Ended`] it consumes nothing and repeats that.
    pub fn step(
        &mut self,
        received: &[u8],
        exports: &dyn ExportList,
        out: &mut Vec<u8>,
    ) -> (usize, Progress) {
        let (consumed_bytes, progress) = match self.stage {
            Stage::ClientFlags => self.client_flags(received),
            Stage::Options { fixed, no_zeroes } => {
                self.option(received, Client { fixed, no_zeroes }, exports, out)
            }
            Stage::Ended(reason) => (0, Progress::Ended(reason)),
        };
        if let Progress::Ended(reason) = progress {
            self.stage = Stage::Ended(reason);
        }
        (consumed_bytes, progress)
    }

    fn client_flags(&mut self, received: &[u8]) -> (usize, Progress) {
        let Some(bytes) = received.first_chunk::<4>() else { return (0, Progress::NeedMore) };
        let flags = u32::from_be_bytes(*bytes);
        let (fixed, no_zeroes) = (u32::from(FLAG_FIXED_NEWSTYLE), u32::from(FLAG_NO_ZEROES));
        if flags & !(fixed | no_zeroes) != 0 {
            return (4, Progress::Ended(EndReason::UnknownClientFlags(flags)));
        }
        self.stage =
            Stage::Options { fixed: flags & fixed != 0, no_zeroes: flags & no_zeroes != 0 };
        (4, Progress::Continue)
    }

    fn option(
        &mut self,
        received: &[u8],
        client: Client,
        exports: &dyn ExportList,
        out: &mut Vec<u8>,
    ) -> (usize, Progress) {
        let Ok((head, rest)) = OptionHead::ref_from_prefix(received) else {
            return (0, Progress::NeedMore);
        };
        let head_bytes = size_of::<OptionHead>();
        if head.magic.get() != OPTION_MAGIC {
            return (head_bytes, Progress::Ended(EndReason::BadMagic(head.magic.get())));
        }
        let len_bytes = head.len.get() as usize;
        if len_bytes > OPTION_BYTES_MAX {
            return (head_bytes, Progress::Ended(EndReason::OptionTooLong(head.len.get())));
        }
        let Some(body) = rest.get(..len_bytes) else { return (0, Progress::NeedMore) };
        let consumed_bytes = head_bytes + len_bytes;
        self.options_seen += 1;
        if self.options_seen > OPTIONS_MAX {
            return (consumed_bytes, Progress::Ended(EndReason::TooManyOptions));
        }
        let option = head.option.get();
        if !client.fixed && option != OPT_EXPORT_NAME {
            // Such a client cannot read option replies.
            return (consumed_bytes, Progress::Ended(EndReason::OutOfPlace(option)));
        }
        (consumed_bytes, self.answer(option, body, client, exports, Answer { option, out }))
    }

    fn answer(
        &mut self,
        option: u32,
        body: &[u8],
        client: Client,
        exports: &dyn ExportList,
        mut answer: Answer<'_>,
    ) -> Progress {
        match option {
            OPT_ABORT => {
                answer.ack();
                return Progress::Ended(EndReason::Aborted);
            }
            // It has no error reply.
            OPT_EXPORT_NAME if self.must_secure() => {
                return Progress::Ended(EndReason::OutOfPlace(option));
            }
            OPT_EXPORT_NAME => return self.export_name(body, client, exports, answer.out),
            _ if self.shutting_down => answer.error(REP_ERR_SHUTDOWN, "server is shutting down"),
            OPT_STARTTLS => return self.start_tls(body, &mut answer),
            _ if self.must_secure() => answer.error(REP_ERR_TLS_REQD, "TLS comes first"),
            OPT_LIST => list(body, exports, &mut answer),
            OPT_INFO | OPT_GO => {
                if let Some(export) = describe(body, self.style, exports, &mut answer)
                    && option == OPT_GO
                {
                    return self.agree(export);
                }
            }
            OPT_STRUCTURED_REPLY => self.structured_reply(body, &mut answer),
            OPT_EXTENDED_HEADERS => self.extended_headers(body, &mut answer),
            OPT_LIST_META_CONTEXT => self.list_contexts(body, exports, &mut answer),
            OPT_SET_META_CONTEXT => self.set_contexts(body, exports, &mut answer),
            _ => answer.error(REP_ERR_UNSUP, "unknown option"),
        }
        Progress::Continue
    }

    /// True if nothing may be said before TLS.
    fn must_secure(&self) -> bool {
        self.tls == TlsPolicy::Required && !self.is_secured
    }

    fn start_tls(&mut self, body: &[u8], answer: &mut Answer<'_>) -> Progress {
        match self.tls {
            TlsPolicy::Off => answer.error(REP_ERR_UNSUP, "TLS is not set up on this server"),
            TlsPolicy::Allowed | TlsPolicy::Required if self.is_secured => {
                answer.error(REP_ERR_INVALID, "TLS is in use already");
            }
            TlsPolicy::Allowed | TlsPolicy::Required if !body.is_empty() => {
                answer.error(REP_ERR_INVALID, "the option takes no data");
            }
            TlsPolicy::Allowed | TlsPolicy::Required => {
                answer.ack();
                self.is_secured = true;
                // What was agreed on before may have been said by somebody in between.
                self.style = HeaderStyle::Simple;
                self.allocation_for = None;
                return Progress::StartTls;
            }
        }
        Progress::Continue
    }

    fn export_name(
        &self,
        body: &[u8],
        client: Client,
        exports: &dyn ExportList,
        out: &mut Vec<u8>,
    ) -> Progress {
        if self.style == HeaderStyle::Extended {
            return Progress::Ended(EndReason::OutOfPlace(OPT_EXPORT_NAME));
        }
        let export = options::name(body).and_then(|name| exports.resolve(name));
        let Some(export) = export.filter(|_| !self.shutting_down) else {
            return Progress::Ended(EndReason::NoSuchExport);
        };
        out.extend_from_slice(&export.size_bytes.to_be_bytes());
        out.extend_from_slice(&export.transmission_flags(self.style).bits().to_be_bytes());
        if !client.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        self.agree(export)
    }

    fn agree(&self, export: ExportDescription) -> Progress {
        let allocation_selected = self.allocation_for.as_ref() == Some(&export.name);
        Progress::Agreed(Box::new(Agreed { export, style: self.style, allocation_selected }))
    }

    fn structured_reply(&mut self, body: &[u8], answer: &mut Answer<'_>) {
        if !body.is_empty() {
            return answer.error(REP_ERR_INVALID, "the option takes no data");
        }
        match self.style {
            HeaderStyle::Simple | HeaderStyle::Structured => {
                self.style = HeaderStyle::Structured;
                answer.ack();
            }
            HeaderStyle::Extended => {
                answer.error(REP_ERR_EXT_HEADER_REQD, "extended headers are already agreed on");
            }
        }
    }

    fn extended_headers(&mut self, body: &[u8], answer: &mut Answer<'_>) {
        if !body.is_empty() {
            return answer.error(REP_ERR_INVALID, "the option takes no data");
        }
        self.style = HeaderStyle::Extended;
        answer.ack();
    }

    /// The export a context option is about, or an error reply.
    fn context_request<'a>(
        &self,
        body: &'a [u8],
        exports: &dyn ExportList,
        answer: &mut Answer<'_>,
    ) -> Option<(ExportDescription, MetaRequest<'a>)> {
        if self.style == HeaderStyle::Simple {
            answer.error(REP_ERR_INVALID, "structured replies come first");
            return None;
        }
        let Some(request) = MetaRequest::parse(body) else {
            answer.error(REP_ERR_INVALID, "malformed metadata context option");
            return None;
        };
        let Some(export) = exports.resolve(request.export) else {
            answer.error(REP_ERR_UNKNOWN, "no such export");
            return None;
        };
        Some((export, request))
    }

    fn list_contexts(&self, body: &[u8], exports: &dyn ExportList, answer: &mut Answer<'_>) {
        let Some((_, request)) = self.context_request(body, exports, answer) else { return };
        let mut queries = request.queries().peekable();
        let every = queries.peek().is_none();
        if every || queries.any(|query| query == "base:" || query == CONTEXT_BASE_ALLOCATION) {
            answer.context(0);
        }
        answer.ack();
    }

    fn set_contexts(&mut self, body: &[u8], exports: &dyn ExportList, answer: &mut Answer<'_>) {
        self.allocation_for = None;
        let Some((export, request)) = self.context_request(body, exports, answer) else { return };
        if request.queries().any(|query| query == CONTEXT_BASE_ALLOCATION) {
            self.allocation_for = Some(export.name);
            answer.context(CONTEXT_ID_BASE_ALLOCATION);
        }
        answer.ack();
    }
}

/// What the client's flags said.
#[derive(Clone, Copy)]
struct Client {
    fixed: bool,
    no_zeroes: bool,
}

fn list(body: &[u8], exports: &dyn ExportList, answer: &mut Answer<'_>) {
    if !body.is_empty() {
        return answer.error(REP_ERR_INVALID, "the option takes no data");
    }
    for name in exports.names() {
        // An export may vanish between the two calls; then it is simply not listed.
        if let Some(export) = exports.lookup(&name) {
            let name_len = options::len_u32(&name).to_be_bytes();
            answer.reply(REP_SERVER, &[&name_len, name.as_bytes(), export.description.as_bytes()]);
        }
    }
    answer.ack();
}

/// Answers INFO or GO; the export if it was a success.
fn describe(
    body: &[u8],
    style: HeaderStyle,
    exports: &dyn ExportList,
    answer: &mut Answer<'_>,
) -> Option<ExportDescription> {
    let Some(request) = InfoRequest::parse(body) else {
        answer.error(REP_ERR_INVALID, "malformed export option");
        return None;
    };
    let Some(export) = exports.resolve(request.export) else {
        answer.error(REP_ERR_UNKNOWN, "no such export");
        return None;
    };
    let flags = export.transmission_flags(style).bits();
    answer.info(INFO_EXPORT, &[&export.size_bytes.to_be_bytes(), &flags.to_be_bytes()]);
    if request.wants(INFO_NAME) {
        answer.info(INFO_NAME, &[export.name.as_bytes()]);
    }
    if request.wants(INFO_DESCRIPTION) {
        answer.info(INFO_DESCRIPTION, &[export.description.as_bytes()]);
    }
    if request.wants(INFO_BLOCK_SIZE) {
        let sizes = export.block_sizes();
        answer.info(
            INFO_BLOCK_SIZE,
            &[
                &sizes.min_bytes.to_be_bytes(),
                &sizes.preferred_bytes.to_be_bytes(),
                &sizes.max_payload_bytes.to_be_bytes(),
            ],
        );
    }
    answer.ack();
    Some(export)
}

/// Appends the replies to one option.
struct Answer<'a> {
    option: u32,
    out: &'a mut Vec<u8>,
}

impl Answer<'_> {
    fn reply(&mut self, kind: u32, parts: &[&[u8]]) {
        let len_bytes: usize = parts.iter().map(|part| part.len()).sum();
        let len = u32::try_from(len_bytes).expect("invariant: names and descriptions are short");
        let head = OptionReplyHead {
            magic: OPTION_REPLY_MAGIC.into(),
            option: self.option.into(),
            kind: kind.into(),
            len: len.into(),
        };
        self.out.extend_from_slice(head.as_bytes());
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    fn ack(&mut self) {
        self.reply(REP_ACK, &[]);
    }

    fn error(&mut self, kind: u32, message: &str) {
        self.reply(kind, &[message.as_bytes()]);
    }

    fn info(&mut self, item: u16, parts: &[&[u8]]) {
        let item = item.to_be_bytes();
        let mut all: Vec<&[u8]> = vec![&item];
        all.extend_from_slice(parts);
        self.reply(REP_INFO, &all);
    }

    fn context(&mut self, id: u32) {
        self.reply(REP_META_CONTEXT, &[&id.to_be_bytes(), CONTEXT_BASE_ALLOCATION.as_bytes()]);
    }
}

#[cfg(test)]
mod tests;
