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
//!   |    `--a write, made without root--> fetching its data --^
//!   `-------ENODEV: the disk was stopped--> gone; all gone: closed, told, exit
//! ```
//!
//! A device that was made without root has no user copy: the kernel copies itself, when a command
//! names memory. What a read gives goes with the answer; for a write there is one command more.
//! The memory of an answer stays with its command, so until the next request of that tag. And the
//! kernel kills the thread of a queue that takes too long: see [`Limit`].
//!
//! Rules. All commands of a queue come from one thread, as the kernel wants it; a lane is one.
//! Commands cannot be cancelled: the kernel gives them back when the disk is stopped.
//!
//! The tricky case is a stop while the device is suspended: the kernel waits for our answers, and
//! the bios may be held for hours. A cut answers with errors what is under way, and what the
//! kernel still hands out; the bios come back to nobody, later.

use super::disk::IO_BYTES_MAX;
use super::wire::{
    ENODEV, REQUEST_BYTES, RESULT_NEED_GET_DATA, Request, RequestKind, data_at, io, io_words,
    requests_at, result_of,
};
use std::any::Any;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use udm_core::actor::{Actor, ActorCx, DeviceNotice};
use udm_core::bio::BioBox;
use udm_driver::KernelView;
use udm_lane::{Buf, Completion, CopyWay, DriverOp, Errno, Handle, Payload, RawHandle, Segment};
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
    /// A request has taken as long as it may ([`Limit`]).
    Overdue,
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

/// Tells a queue how long a request may take until it reports [`QueueReport::Overdue`], once; send
/// it as a message. Without it there is no limit.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// As for [`Cut`].
    pub number: u64,
    /// How long.
    pub longest: Nanos,
}

/// How data moves between the kernel and the lane's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataWay {
    /// We copy it.
    Copied,
    /// The kernel copies it, to and from memory that commands name.
    Named,
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
    /// How its data moves.
    pub way: DataWay,
    /// The device file, for this queue alone.
    pub fd: OwnedFd,
}

/// Where a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Kernel,
    /// With the kernel, too: a write's data is on its way.
    Fetching,
    /// Since when.
    Busy(Request, Nanos),
    Gone,
}

/// Timers: all commands are given out; a request may be overdue.
const READY: u64 = 0;
const LOOK_AT_OLDEST: u64 = 1;

/// Bytes of the memory named where nothing is copied.
const SPARE_BYTES: usize = 4096;

/// A queue.
pub struct Queue {
    setup: Setup,
    fd: Option<OwnedFd>,
    handle: Option<Handle>,
    requests: Option<KernelView>,
    tags: Vec<Tag>,
    gone: usize,
    cut: bool,
    /// The kernel wants to be named memory for every read, a failed one as well. It leaves this
    /// alone, so one piece does for all.
    spare: Option<Buf>,
    limit: Option<Nanos>,
    has_timer: bool,
    report: Report,
}

/// [`QueueSetup`] without what is handed over.
struct Setup {
    number: u64,
    device: DeviceId,
    read_only: bool,
    queue: u16,
    way: DataWay,
}

impl Queue {
    /// A queue; install it on a lane.
    pub fn new(setup: QueueSetup, report: Report) -> Queue {
        let QueueSetup { number, device, read_only, queue, depth, way, fd } = setup;
        Queue {
            setup: Setup { number, device, read_only, queue, way },
            fd: Some(fd),
            handle: None,
            requests: None,
            tags: vec![Tag::Gone; usize::from(depth)],
            gone: usize::from(depth),
            cut: false,
            spare: (way == DataWay::Named).then(|| Buf::alloc(SPARE_BYTES)),
            limit: None,
            has_timer: false,
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
            self.command(tag, io::FETCH, 0, Payload::empty(), cx);
        }
        Ok(())
    }

    fn command(
        &mut self,
        tag: usize,
        code: u32,
        result: i32,
        mut memory: Payload,
        cx: &mut ActorCx<'_>,
    ) {
        let Some(handle) = self.handle else { return };
        self.tags[tag] = if code == io::NEED_GET_DATA { Tag::Fetching } else { Tag::Kernel };
        if let Some(spare) = self.spare.as_ref().filter(|_| memory.is_empty()) {
            memory = Payload::from_buf(spare.clone());
        }
        // Fits: there are at most 4096 tags.
        let words = io_words(self.setup.queue, tag as u16, result);
        cx.submit_op(tag as u32, DriverOp::Command { handle, code, words, memory });
    }

    fn answer(&mut self, tag: usize, status: Status, len_bytes: i32, cx: &mut ActorCx<'_>) {
        self.answer_with(tag, status, len_bytes, Payload::empty(), cx);
    }

    fn answer_with(
        &mut self,
        tag: usize,
        status: Status,
        len_bytes: i32,
        data: Payload,
        cx: &mut ActorCx<'_>,
    ) {
        self.command(tag, io::COMMIT_AND_FETCH, result_of(status, len_bytes), data, cx);
    }

    /// What is asked in a tag; `None` for an operation that we do not know.
    fn request(&self, tag: usize) -> Option<Request> {
        let requests = self.requests.as_ref()?;
        Request::parse(&requests.read::<REQUEST_BYTES>(tag * REQUEST_BYTES))
    }

    /// A write has come, and the kernel wants to know where its data goes.
    fn fetch(&mut self, tag: usize, cx: &mut ActorCx<'_>) {
        // No operation but a write has data to fetch; for another there is room for any.
        let len_of = |request: Request| request.len_sectors << SECTOR_SHIFT;
        let len_bytes = self.request(tag).map_or(IO_BYTES_MAX, len_of).max(1);
        let memory = data_of(len_bytes, cx);
        self.command(tag, io::NEED_GET_DATA, 0, memory, cx);
    }

    /// A request has come, with its data if it was fetched.
    fn begin(&mut self, tag: usize, fetched: Payload, cx: &mut ActorCx<'_>) {
        let Some(request) = self.request(tag) else {
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
        let len_bytes = request.len_sectors << SECTOR_SHIFT;
        let is_there = match (op, self.setup.way) {
            (Op::Read, _) => {
                bio.payload = data_of(len_bytes, cx);
                true
            }
            (Op::Write, DataWay::Copied) => {
                bio.payload = data_of(len_bytes, cx);
                self.copy(tag, &bio, CopyWay::Out, cx)
            }
            (Op::Write, DataWay::Named) => {
                let is_enough = fetched.len_bytes() >= u64::from(len_bytes);
                if is_enough {
                    bio.payload = shortened(fetched, u64::from(len_bytes));
                }
                is_enough
            }
            (Op::Flush | Op::Discard | Op::WriteZeroes, _) => true,
        };
        if !is_there {
            give_back(bio, cx);
            return self.answer(tag, Status::IoErr, 0, cx);
        }
        let (sector, len_sectors) = match op {
            Op::Flush => (0, 0),
            Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => {
                (request.sector, Sector::from(request.len_sectors))
            }
        };
        self.tags[tag] = Tag::Busy(request, cx.now());
        self.watch(cx);
        bio.ask(op, flags, sector, len_sectors);
        cx.submit(self.setup.device, tag as u64, bio);
    }

    /// Sees to it that the oldest request is looked at when it is overdue.
    fn watch(&mut self, cx: &mut ActorCx<'_>) {
        let Some(longest) = self.limit.filter(|_| !self.has_timer) else { return };
        let begun = self.tags.iter().filter_map(|tag| match tag {
            Tag::Busy(_, since) => Some(*since),
            Tag::Kernel | Tag::Fetching | Tag::Gone => None,
        });
        if let Some(oldest) = begun.min() {
            self.has_timer = true;
            cx.set_timer(oldest + longest, LOOK_AT_OLDEST);
        }
    }

    fn look_at_oldest(&mut self, cx: &mut ActorCx<'_>) {
        self.has_timer = false;
        let Some(longest) = self.limit else { return };
        let now = cx.now();
        let is_overdue = self.tags.iter().any(|tag| match tag {
            Tag::Busy(_, since) => *since + longest <= now,
            Tag::Kernel | Tag::Fetching | Tag::Gone => false,
        });
        if is_overdue {
            self.limit = None;
            return (self.report)(QueueReport::Overdue);
        }
        self.watch(cx);
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
                Tag::Busy(..) => self.answer(tag, Status::IoErr, 0, cx),
                Tag::Kernel | Tag::Fetching | Tag::Gone => {}
            }
        }
    }
}

/// Memory for the data of a request.
fn data_of(len_bytes: u32, cx: &mut ActorCx<'_>) -> Payload {
    let buf = cx.bufs().take(len_bytes.max(1) as usize);
    Payload::from(Segment { buf, offset_bytes: 0, len_bytes })
}

/// What was fetched may be less than there is room for; the kernel then asks for the rest later.
fn shortened(fetched: Payload, len_bytes: u64) -> Payload {
    if fetched.len_bytes() == len_bytes { fetched } else { fetched.slice(0, len_bytes) }
}

/// Keeps a buffer for the next request.
fn keep(data: Payload, cx: &mut ActorCx<'_>) {
    if let Some(buf) = data.into_first_buf() {
        cx.bufs().put(buf);
    }
}

/// Keeps the bio and its buffer.
fn give_back(mut bio: BioBox, cx: &mut ActorCx<'_>) {
    let data = std::mem::take(&mut bio.payload);
    cx.recycle(bio);
    keep(data, cx);
}

impl Actor for Queue {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        if let Err(errno) = self.open(cx) {
            (self.report)(QueueReport::Refused(errno));
            return self.end_if_gone(cx);
        }
        // The kernel refuses at once what it refuses, so by the next turn that is known.
        cx.set_timer(cx.now() + Nanos(1), READY);
    }

    fn on_timer(&mut self, token: u64, cx: &mut ActorCx<'_>) {
        match token {
            READY if self.gone == 0 => (self.report)(QueueReport::Ready),
            LOOK_AT_OLDEST => self.look_at_oldest(cx),
            _ => {}
        }
    }

    fn on_op(&mut self, user: u32, completion: Completion, cx: &mut ActorCx<'_>) {
        let tag = user as usize;
        let memory = completion.payload;
        match completion.result {
            Ok(RESULT_NEED_GET_DATA) => {
                keep(memory, cx);
                self.fetch(tag, cx);
            }
            Ok(_) if self.tags[tag] == Tag::Fetching => self.begin(tag, memory, cx),
            Ok(_) => {
                keep(memory, cx);
                self.begin(tag, Payload::empty(), cx);
            }
            Err(errno) => {
                keep(memory, cx);
                self.lost(tag, errno, cx);
            }
        }
    }

    fn on_bio(&mut self, tag: u64, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let tag = tag as usize;
        if self.cut {
            // It was answered by the cut.
            return give_back(bio, cx);
        }
        let Some(Tag::Busy(request, _)) = self.tags.get(tag).copied() else {
            debug_assert!(false, "a bio nobody submitted");
            return cx.recycle(bio);
        };
        let (mut status, mut len_bytes) = (bio.status, 0);
        let mut data = Payload::empty();
        match request.kind {
            RequestKind::Read | RequestKind::Write { .. } if !status.is_ok() => {}
            RequestKind::Read => {
                len_bytes = bio.payload.len_bytes() as i32;
                match self.setup.way {
                    DataWay::Named => data = std::mem::take(&mut bio.payload),
                    DataWay::Copied if self.copy(tag, &bio, CopyWay::In, cx) => {}
                    DataWay::Copied => status = Status::IoErr,
                }
            }
            RequestKind::Write { .. } => len_bytes = bio.payload.len_bytes() as i32,
            RequestKind::Flush | RequestKind::Discard | RequestKind::WriteZeroes { .. } => {}
        }
        give_back(bio, cx);
        self.answer_with(tag, status, len_bytes, data, cx);
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
        match message.downcast::<Cut>() {
            Ok(cut) if cut.number == self.setup.number => self.cut(cx),
            Ok(_) => {}
            Err(message) => {
                let limit = message.downcast::<Limit>().ok();
                if let Some(limit) = limit.filter(|limit| limit.number == self.setup.number) {
                    self.limit = Some(limit.longest);
                    self.watch(cx);
                }
            }
        }
    }
}
