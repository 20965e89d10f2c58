//! One client's connection: bytes to calls, calls to answers, in order, until either side ends it.
//!
//! Runs on a thread of its own, since building a table opens files and may block; it never holds
//! up a lane or another client. While a call waits in the engine (suspend, resume, wait, events)
//! the thread watches three things at once: the answer, the client, and the server's end. A client
//! that has gone, or a server that ends, cancels the request by its ticket; the engine then
//! answers soon, and only then the thread goes on.
//!
//! Rules: a call that is no varlink at all is answered with an error and the connection closed,
//! since nothing after it can be trusted. Anything else that is wrong is answered and the
//! connection lives. Descriptors that come along are closed unless the call wants them.
//!
//! The tricky case is the half-closed client (`printf ... | nc -N`): it has sent its call, will
//! send no more and still waits for the answer. Only a fully closed peer counts as gone.

use crate::api;
use crate::dispatch::{self, Asker, CallError};
use crate::ops::{ControlOps, ended};
use crate::wire::{Answer, Call, MessageReader, encode};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use serde_json::Value;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{Reply, Request, Ticket};

/// Bytes read at once; most messages are shorter, a large table comes in a few thousand pieces.
const READ_LEN_BYTES: usize = 64 << 10;
/// Descriptors taken with one read; more is nobody's mistake but someone's attack.
const DESCRIPTORS_MAX: usize = 4;

/// How long a client may leave its answers unread before it loses its connection.
const WRITE_LIMIT: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
/// The same once the server ends.
const WRITE_LIMIT_AT_END: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A flag that threads can wait for together with their sockets.
#[derive(Debug)]
pub(crate) struct Flag(OwnedFd);

impl Flag {
    pub(crate) fn new() -> io::Result<Flag> {
        Ok(Flag(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn raise(&self) {
        // Fails only if the counter is full, and then it is raised already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// As if it had never been raised.
    pub(crate) fn lower(&self) {
        // Fails if it is not raised.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }
}

/// Waits until one of the descriptors is readable or has ended, or for as long as `limit`; says
/// which.
pub(crate) fn wait_readable<const N: usize>(
    fds: [&dyn AsFd; N],
    limit: Option<&Timespec>,
) -> io::Result<[bool; N]> {
    loop {
        let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        match poll(&mut polled, limit) {
            Ok(_) => return Ok(polled.each_ref().map(|fd| !fd.revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What connections of one server share.
pub(crate) struct Shared {
    pub(crate) ops: Arc<dyn ControlOps>,
    pub(crate) stop: Flag,
}

/// A client's connection.
pub(crate) struct Connection {
    stream: UnixStream,
    shared: Arc<Shared>,
    reader: MessageReader,
    descriptors: Vec<OwnedFd>,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, shared: Arc<Shared>) -> Connection {
        Connection { stream, shared, reader: MessageReader::default(), descriptors: Vec::new() }
    }

    /// Serves the client until it leaves, breaks the protocol, or the server ends.
    pub(crate) fn run(mut self) {
        // An error here is a client that has gone or sent garbage; it has been told what can be
        // told, and nobody else is concerned.
        let _ = self.serve();
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            let message = match self.reader.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => {
                    if !self.read()? {
                        return Ok(());
                    }
                    continue;
                }
                Err(too_long) => return self.garbage(&too_long.to_string()),
            };
            let call: Call = match serde_json::from_slice(&message) {
                Ok(call) => call,
                Err(error) => return self.garbage(&error.to_string()),
            };
            self.call(&call)?;
            self.descriptors.clear();
        }
    }

    fn call(&mut self, call: &Call) -> io::Result<()> {
        let ops = Arc::clone(&self.shared.ops);
        let result = dispatch::call(call, &*ops, self);
        if call.oneway {
            return Ok(());
        }
        self.send(&answer_of(result))
    }

    fn garbage(&mut self, what: &str) -> io::Result<()> {
        let error = UserError::new(ErrorCode::BadRequest, format!("not a varlink call: {what}"));
        self.send(&answer_of(Err(CallError::User(error))))?;
        Err(io::ErrorKind::InvalidData.into())
    }

    fn send(&mut self, answer: &Answer) -> io::Result<()> {
        let bytes = encode(answer);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match send(&self.stream, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_writable()?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until the client takes more, but not for ever: one that never reads would keep a
    /// thread, and the server from its end.
    fn wait_writable(&self) -> io::Result<()> {
        let stop = self.shared.stop.descriptor();
        let writable = PollFd::new(&self.stream, PollFlags::OUT);
        let mut polled = [writable.clone(), PollFd::new(stop, PollFlags::IN)];
        let mut count = match poll(&mut polled, Some(&WRITE_LIMIT)) {
            Err(Errno::INTR) => return Ok(()),
            other => other?,
        };
        if polled[0].revents().is_empty() && !polled[1].revents().is_empty() {
            count = poll(&mut [writable], Some(&WRITE_LIMIT_AT_END))?;
        }
        if count == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// Reads once. False at the end of the stream or of the server.
    fn read(&mut self) -> io::Result<bool> {
        let [_, stop] = wait_readable([&self.stream, self.shared.stop.descriptor()], None)?;
        if stop {
            return Ok(false);
        }
        let mut bytes = vec![0; READ_LEN_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.reader.push(&bytes[..received.bytes]);
        Ok(received.bytes > 0)
    }

    /// True once the client has closed both directions, or the server ends.
    fn wait_for_answer(&self, answered: &OwnedFd, asked: Asked) -> io::Result<Gone> {
        let input = match asked {
            Asked::UntilGone => PollFlags::empty(),
            Asked::WhileIdle if self.reader.in_message() => return Ok(Gone::Yes),
            Asked::WhileIdle => PollFlags::IN,
        };
        loop {
            let stop = self.shared.stop.descriptor();
            let mut polled = [
                PollFd::new(answered, PollFlags::IN),
                PollFd::new(&self.stream, input),
                PollFd::new(stop, PollFlags::IN),
            ];
            match poll(&mut polled, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if !polled[0].revents().is_empty() {
                return Ok(Gone::No);
            }
            if !polled[1].revents().is_empty() || !polled[2].revents().is_empty() {
                return Ok(Gone::Yes);
            }
        }
    }
}

/// How long a client waits for an answer.
#[derive(Clone, Copy)]
enum Asked {
    /// Until it closes the connection.
    UntilGone,
    /// Until it says something else, too.
    WhileIdle,
}

/// Has the asker gone before its answer?
enum Gone {
    Yes,
    No,
}

/// Tells the waiting thread that an answer is there, or that there will be none.
struct Bell(Arc<Flag>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.raise();
    }
}

impl Asker for Connection {
    fn ticket(&mut self) -> Ticket {
        self.shared.ops.ticket()
    }

    fn ask(&mut self, request: Request, ticket: Option<Ticket>) -> Result<Reply, UserError> {
        match ticket {
            Some(ticket) => self.wait_in_engine(request, ticket, Asked::UntilGone),
            None => self.shared.ops.request(request),
        }
    }

    fn ask_while_idle(&mut self, request: Request, ticket: Ticket) -> Result<Reply, UserError> {
        self.wait_in_engine(request, ticket, Asked::WhileIdle)
    }

    fn emit(&mut self, parameters: Value) -> bool {
        let answer = Answer { parameters: Some(parameters), continues: true, error: None };
        self.send(&answer).is_ok()
    }
}

impl Connection {
    /// Posts a request that may wait; a client that no longer does cancels it.
    fn wait_in_engine(
        &self,
        request: Request,
        ticket: Ticket,
        asked: Asked,
    ) -> Result<Reply, UserError> {
        let system = |error: &io::Error| {
            crate::errno::system(ErrorCode::Internal, "waiting for the engine", error)
        };
        let answered = Arc::new(Flag::new().map_err(|error| system(&error))?);
        let (sender, receiver) = mpsc::sync_channel(1);
        let bell = Bell(Arc::clone(&answered));
        self.shared.ops.post(
            request,
            Box::new(move |reply| {
                let _ = sender.send(reply);
                drop(bell);
            }),
        );
        if let Gone::Yes =
            self.wait_for_answer(answered.descriptor(), asked).map_err(|error| system(&error))?
        {
            self.shared.ops.post(Request::Cancel { ticket }, Box::new(|_| ()));
        }
        receiver.recv().unwrap_or_else(|_| Err(ended()))
    }
}

/// A call's result as a message.
pub(crate) fn answer_of(result: Result<Value, CallError>) -> Answer {
    let (error, parameters) = match result {
        Ok(parameters) => (None, parameters),
        Err(CallError::Varlink(name, parameters)) => {
            (Some(format!("org.varlink.service.{name}")), parameters)
        }
        Err(CallError::User(error)) => {
            let parameters = serde_json::to_value(api::to_wire(&error))
                .expect("invariant: errors have string keys only");
            (Some(format!("{}.Error", crate::INTERFACE)), parameters)
        }
    };
    Answer { parameters: Some(parameters), continues: false, error }
}
