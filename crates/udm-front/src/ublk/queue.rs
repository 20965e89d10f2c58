//! One queue of a ublk disk on a lane: an actor that takes requests from the kernel and answers.
//!
//! For every tag there is one command, and it is either with the kernel, waiting for a request, or
//! here, while the request becomes a bio. The answer of one request and the wait for the next are
//! one command. So what is under way is bounded by the queue's depth, an idle queue costs nothing,
//! and in steady state nothing is allocated: the data goes through a buffer of the lane's pool,
//! which a request has only while it is served.
//!
//! ```text
//! with the kernel --a request--> bio under way --its result--> with the kernel
//!        `--------ENODEV: the disk was stopped--> gone; all gone: closed, told, exit
//! ```
//!
//! Rules. All commands of a queue come from one thread, as the kernel wants it; a lane is one.
//! Commands cannot be cancelled: the kernel gives them back when the disk is stopped.
//!
//! The tricky case is a stop while the device is suspended: the kernel waits for our answers, and
//! the bios may be held for hours. A cut answers with errors what is under way, and what the
//! kernel still hands out; the bios come back to nobody, later.

use super::wire::{
    ENODEV, REQUEST_BYTES, Request, RequestKind, data_at, io, io_words, requests_at, result_of,
};
use std::any::Any;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use udm_core::actor::{Actor, ActorCx, DeviceNotice};
use udm_core::bio::BioBox;
use udm_driver::KernelView;
use udm_lane::{Completion, CopyWay, DriverOp, Errno, Handle, RawHandle, Segment};
use udm_types::{BioFlags, DeviceId, Nanos, Op, SECTOR_SHIFT, Sector, Status};

/// What a queue tells its server. Told on the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueReport {
    /// The kernel has all its commands.
    Ready,
    /// The kernel refused something.
    Refused(Errno),
    /// The device has another size.
    Resized(Sector),
    /// The kernel has given everything back, and the device file is closed.
    Ended,
}

/// Called with a queue's reports.
pub type Report = Box<dyn Fn(QueueReport) + Send>;

/// Tells a queue to answer everything with an error from now on; send it as a message.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Which queue is meant; an actor's id may belong to another by the time this arrives.
    pub number: u64,
}

/// What a queue serves.
#[derive(Debug)]
pub struct QueueSetup {
    /// Tells it from others.
    pub number: u64,
    /// The device.
    pub device: DeviceId,
    /// Refuse every change.
    pub read_only: bool,
    /// Its number in the disk.
    pub queue: u16,
    /// Requests under way, at most.
    pub depth: u16,
    /// The device file, for this queue alone.
    pub fd: OwnedFd,
}

/// Where a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Kernel,
    Busy(Request),
    Gone,
}

/// A queue.
pub struct Queue {
    setup: Setup,
    fd: Option<OwnedFd>,
    handle: Option<Handle>,
    requests: Option<KernelView>,
    tags: Vec<Tag>,
    gone: usize,
    cut: bool,
    report: Report,
}

/// [`QueueSetup`] without what is handed over.
struct Setup {
    number: u64,
    device: DeviceId,
    read_only: bool,
    queue: u16,
}

impl Queue {
    /// A queue; install it on a lane.
    pub fn new(setup: QueueSetup, report: Report) -> Queue {
        let QueueSetup { number, device, read_only, queue, depth, fd } = setup;
        Queue {
            setup: Setup { number, device, read_only, queue },
            fd: Some(fd),
            handle: None,
            requests: None,
            tags: vec![Tag::Gone; usize::from(depth)],
            gone: usize::from(depth),
            cut: false,
            report,
        }
    }

    /// Maps the requests, and gives the kernel every command.
    fn open(&mut self, cx: &mut ActorCx<'_>) -> Result<(), Errno> {
        let fd = self.fd.take().ok_or(Errno(ENODEV))?;
        // Fits: it was a u16.
        let (at, len_bytes) = requests_at(self.setup.queue, self.tags.len() as u16);
        self.requests = Some(KernelView::map(fd.as_fd(), at, len_bytes)?);
        self.handle = Some(cx.driver().register(RawHandle(fd.into_raw_fd()))?);
        for tag in 0..self.tags.len() {
            self.gone -= 1;
            self.command(tag, io::FETCH, 0, cx);
        }
        Ok(())
    }

    fn command(&mut self, tag: usize, code: u32, result: i32, cx: &mut ActorCx<'_>) {
        let Some(handle) = self.handle else { return };
        self.tags[tag] = Tag::Kernel;
        // Fits: there are at most 4096 tags.
        let words = io_words(self.setup.queue, tag as u16, result);
        cx.submit_op(tag as u32, DriverOp::Command { handle, code, words });
    }

    fn answer(&mut self, tag: usize, status: Status, len_bytes: i32, cx: &mut ActorCx<'_>) {
        self.command(tag, io::COMMIT_AND_FETCH, result_of(status, len_bytes), cx);
    }

    /// A request has come.
    fn begin(&mut self, tag: usize, cx: &mut ActorCx<'_>) {
        let Some(requests) = &self.requests else { return };
        let bytes = requests.read::<REQUEST_BYTES>(tag * REQUEST_BYTES);
        let Some(request) = Request::parse(&bytes) else {
            return self.answer(tag, Status::NotSupported, 0, cx);
        };
        if self.cut {
            return self.answer(tag, Status::IoErr, 0, cx);
        }
        let mut flags = BioFlags::empty();
        let op = match request.kind {
            RequestKind::Read => Op::Read,
            RequestKind::Write { fua } => {
                flags.set(BioFlags::FUA, fua);
                Op::Write
            }
            RequestKind::Flush => Op::Flush,
            RequestKind::Discard => Op::Discard,
            RequestKind::WriteZeroes { no_unmap } => {
                flags.set(BioFlags::NO_UNMAP, no_unmap);
                Op::WriteZeroes
            }
        };
        if op.is_write() && self.setup.read_only {
            return self.answer(tag, Status::ReadOnly, 0, cx);
        }
        let mut bio = cx.take_bio();
        if matches!(op, Op::Read | Op::Write) {
            let len_bytes = request.len_sectors << SECTOR_SHIFT;
            let buf = cx.bufs().take(len_bytes.max(1) as usize);
            bio.payload.push(Segment { buf, offset_bytes: 0, len_bytes });
        }
        if op == Op::Write && !self.copy(tag, &bio, CopyWay::Out, cx) {
            give_back(bio, cx);
            return self.answer(tag, Status::IoErr, 0, cx);
        }
        let (sector, len_sectors) = match op {
            Op::Flush => (0, 0),
            Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => {
                (request.sector, Sector::from(request.len_sectors))
            }
        };
        self.tags[tag] = Tag::Busy(request);
        bio.ask(op, flags, sector, len_sectors);
        cx.submit(self.setup.device, tag as u64, bio);
    }

    /// Copies a request's data out of the kernel or into it. True if it was all of it.
    fn copy(&self, tag: usize, bio: &BioBox, way: CopyWay, cx: &mut ActorCx<'_>) -> bool {
        let Some(handle) = self.handle else { return false };
        let at = data_at(self.setup.queue, tag as u16);
        let copied = cx.driver().copy_now(handle, at, &bio.payload, way);
        copied.is_ok_and(|len| u64::from(len) == bio.payload.len_bytes())
    }

    /// A command of this tag has failed: the disk was stopped, or the kernel does not like it.
    fn lost(&mut self, tag: usize, errno: Errno, cx: &mut ActorCx<'_>) {
        self.tags[tag] = Tag::Gone;
        self.gone += 1;
        if errno != Errno(ENODEV) {
            (self.report)(QueueReport::Refused(errno));
        }
        self.end_if_gone(cx);
    }

    fn end_if_gone(&mut self, cx: &mut ActorCx<'_>) {
        if self.gone < self.tags.len() {
            return;
        }
        self.requests = None;
        if let Some(handle) = self.handle.take() {
            cx.driver().close(handle);
        }
        (self.report)(QueueReport::Ended);
        cx.exit();
    }

    fn cut(&mut self, cx: &mut ActorCx<'_>) {
        if std::mem::replace(&mut self.cut, true) {
            return;
        }
        for tag in 0..self.tags.len() {
            match self.tags[tag] {
                Tag::Busy(_) => self.answer(tag, Status::IoErr, 0, cx),
                Tag::Kernel | Tag::Gone => {}
            }
        }
    }
}

/// Keeps the bio's buffer for the next request.
fn give_back(mut bio: BioBox, cx: &mut ActorCx<'_>) {
    let buf = std::mem::take(&mut bio.payload).into_first_buf();
    cx.recycle(bio);
    if let Some(buf) = buf {
        cx.bufs().put(buf);
    }
}

impl Actor for Queue {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        if let Err(errno) = self.open(cx) {
            (self.report)(QueueReport::Refused(errno));
            return self.end_if_gone(cx);
        }
        // The kernel refuses at once what it refuses, so by the next turn that is known.
        cx.set_timer(cx.now() + Nanos(1), 0);
    }

    fn on_timer(&mut self, _token: u64, _cx: &mut ActorCx<'_>) {
        if self.gone == 0 {
            (self.report)(QueueReport::Ready);
        }
    }

    fn on_op(&mut self, user: u32, completion: Completion, cx: &mut ActorCx<'_>) {
        let tag = user as usize;
        match completion.result {
            Ok(_) => self.begin(tag, cx),
            Err(errno) => self.lost(tag, errno, cx),
        }
    }

    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        let tag = tag as usize;
        if self.cut {
            // It was answered by the cut.
            return give_back(bio, cx);
        }
        let Some(Tag::Busy(request)) = self.tags.get(tag).copied() else {
            debug_assert!(false, "a bio nobody submitted");
            return cx.recycle(bio);
        };
        let (mut status, mut len_bytes) = (bio.status, 0);
        match request.kind {
            RequestKind::Read | RequestKind::Write { .. } if !status.is_ok() => {}
            RequestKind::Read => {
                len_bytes = bio.payload.len_bytes() as i32;
                if !self.copy(tag, &bio, CopyWay::In, cx) {
                    status = Status::IoErr;
                }
            }
            RequestKind::Write { .. } => len_bytes = bio.payload.len_bytes() as i32,
            RequestKind::Flush | RequestKind::Discard | RequestKind::WriteZeroes { .. } => {}
        }
        give_back(bio, cx);
        self.answer(tag, status, len_bytes, cx);
    }

    fn on_notice(&mut self, notice: DeviceNotice, cx: &mut ActorCx<'_>) {
        match notice {
            // One queue is enough to tell.
            DeviceNotice::Resized(device) if device == self.setup.device => {
                if self.setup.queue == 0
                    && let Some(view) = cx.device(device)
                {
                    (self.report)(QueueReport::Resized(view.len_sectors));
                }
            }
            DeviceNotice::Resized(_) | DeviceNotice::Removed(_) => {}
        }
    }

    fn on_message(&mut self, message: Box<dyn Any + Send>, cx: &mut ActorCx<'_>) {
        if let Ok(cut) = message.downcast::<Cut>()
            && cut.number == self.setup.number
        {
            self.cut(cx);
        }
    }
}
