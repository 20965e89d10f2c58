//! Messages on the socket of a connection: bytes and the descriptors that come and go with them.
//!
//! Used by the control thread of an export. Nothing here waits: a message arrives in as many pieces
//! as the client likes, and a client that does not read its replies has broken off.
//!
//! The tricky case is whose a descriptor is. The kernel gives those of every byte that a read
//! takes, so a message is read in two parts and never beyond its end.

use super::breach::Breach;
use super::session::Reply;
use super::wire::{BODY_BYTES_MAX, HEADER_BYTES, Header};
use rustix::io::Errno as OsErrno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// Descriptors in one message, at most; a memory table has eight.
const FDS_MAX: usize = 16;

/// A message that is being received. It is read in two parts, never beyond its end, so that the
/// descriptors that arrive are its own.
#[derive(Default)]
pub(super) struct Incoming {
    head: Vec<u8>,
    header: Option<Header>,
    pub(super) body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Incoming {
    /// Receives what is there. The header and the descriptors once the message is complete.
    pub(super) fn receive(
        &mut self,
        socket: &OwnedFd,
    ) -> Result<Option<(Header, Vec<OwnedFd>)>, Breach> {
        loop {
            let (part, want) = match &self.header {
                None => (&mut self.head, HEADER_BYTES),
                Some(header) => (&mut self.body, header.body_bytes),
            };
            if part.len() < want {
                let mut room = [0; BODY_BYTES_MAX];
                let room = &mut room[..want - part.len()];
                match receive_some(socket, room, &mut self.fds)? {
                    None => return Ok(None),
                    Some(len) => part.extend(&room[..len]),
                }
                continue;
            }
            match self.header {
                Some(header) => return Ok(Some((header, std::mem::take(&mut self.fds)))),
                None => {
                    let head = self.head.first_chunk().ok_or(Breach::Message("no header"))?;
                    self.header = Some(Header::parse(head)?);
                }
            }
        }
    }
}

/// Receives some bytes and their descriptors, without waiting. `None` if nothing is there.
fn receive_some(
    socket: &OwnedFd,
    room: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Option<usize>, Breach> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(room)], &mut control, flags);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(arrived) = message {
            fds.extend(arrived);
        }
    }
    match received {
        Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) || fds.len() > FDS_MAX => {
            Err(Breach::Message("too many descriptors"))
        }
        Ok(message) if message.bytes == 0 => Err(Breach::Message("the client is gone")),
        Ok(message) => Ok(Some(message.bytes)),
        Err(OsErrno::AGAIN | OsErrno::INTR) => Ok(None),
        Err(error) => Err(Breach::System("receiving a message", error.raw_os_error())),
    }
}

/// Sends a reply. A client that does not read its replies has broken off.
pub(super) fn send(socket: &OwnedFd, reply: &Reply) -> Result<(), Breach> {
    if reply.bytes.is_empty() {
        return Ok(());
    }
    let fds: Vec<_> = reply.fd.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Breach::System("sending a descriptor", 0));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match sendmsg(socket, &[IoSlice::new(&reply.bytes)], &mut control, flags) {
        Ok(len) if len == reply.bytes.len() => Ok(()),
        Ok(_) => Err(Breach::Message("the client does not read")),
        Err(error) => Err(Breach::System("sending a reply", error.raw_os_error())),
    }
}
