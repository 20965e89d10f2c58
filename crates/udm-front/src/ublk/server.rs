//! The life of a ublk disk, and the thread that looks after it.
//!
//! ```text
//! new:      add --> queues on the lanes --> start ----> served
//! taken up: start recovery --> queues --> end recovery --^
//! served --stop: the kernel waits for its answers--> queues end --> delete --> gone
//! ```
//!
//! A disk is started on the caller's thread. Then it has a thread of its own, asleep until the
//! device is resized, a queue fails, or somebody stops it; orders to the kernel may block.
//!
//! Rules. A disk is deleted only after all queues have closed the device file, since the kernel
//! waits for that. A disk that cannot be started is taken back before the error is returned.
//!
//! The tricky case is a stop that waits for a device that is suspended. The thread is in the
//! kernel then and hears nothing; so a cut goes to the queues past it, they answer, and the
//! kernel lets the thread go.

use super::control::{Control, NewDevice, UblkError};
use super::disk::{BlockTooLarge, IO_BYTES_MAX, params};
use super::queue::{Cut, DataWay, Limit, Queue, QueueReport, QueueSetup};
use super::untrusted::await_file;
use super::wire::{DeviceInfo, DeviceNumbers, feature};
use crate::lanes::{LaneShare, Lanes};
use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use udm_core::LaneMessage;
use udm_lane::{Errno, Mailbox};
use udm_types::{ActorId, DeviceId, LaneId, Nanos, Sector};

/// Requests under way in a queue, at most: what Linux gives fast disks.
const DEPTH: u16 = 128;

/// The kernel notices the death of a server at once by the commands it has; if all of them are
/// with the server, only when a request has taken this long. It is no limit: a request of a living
/// server may take any time.
const LOOK_AT_SERVER_MS: u32 = 1000;

/// If a device was made without root, the kernel kills its server when a request takes that long
/// (`queue/io_timeout`), and all that this daemon serves would go with it. So such a disk ends
/// before, by this much of that time, as (numerator, denominator).
const PATIENCE: (u64, u64) = (5, 6);
/// What users of such a disk should know.
const UNTRUSTED: &str = "made without root: it ends with this daemon, or with a request that takes \
    too long (queue/io_timeout)";
/// The kernel's limit, if it does not say.
const KERNEL_LIMIT_MS: u64 = 30_000;

/// Tells queues from others that had their actor's number.
static NEXT_QUEUE: AtomicU64 = AtomicU64::new(1);

/// A disk to be.
#[derive(Clone, Copy, Debug)]
pub struct DiskOrder {
    /// The device.
    pub device: DeviceId,
    /// Refuse every change.
    pub read_only: bool,
    /// N of `/dev/ublkbN`; the kernel's choice if left out.
    pub number: Option<u32>,
    /// A disk of that number is one that a daemon before this one has left.
    pub take_up: bool,
    /// The disk waits for the next daemon when this one dies.
    pub outlives: bool,
    /// The lanes of its queues.
    pub lanes: LaneShare,
}

/// Called when a disk has ended by itself, with the reason.
pub type Lapse = Box<dyn FnOnce(&str) + Send>;

/// A disk that is served.
#[derive(Debug)]
pub struct Server {
    number: u32,
    numbers: DeviceNumbers,
    queues: Queues,
    events: Sender<Event>,
    note: Arc<Mutex<Option<String>>>,
    told_sectors: Arc<AtomicU64>,
    resizes: bool,
    outlives: bool,
    untrusted: bool,
}

/// What the thread waits for.
enum Event {
    Queue(QueueReport),
    Settle(Done),
    Stop(Done),
}

/// Called when a server has ended, or has done what was asked.
type Done = Box<dyn FnOnce() + Send>;

/// The queues of a disk.
#[derive(Clone)]
struct Queues {
    lanes: Lanes,
    places: Vec<(LaneId, ActorId, u64)>,
}

impl std::fmt::Debug for Queues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} queues", self.places.len())
    }
}

impl Queues {
    fn cut(&self) {
        for &(lane, actor, number) in &self.places {
            let cut = Box::new(Cut { number });
            self.lanes.tell(lane, LaneMessage::ToActor(actor, cut));
        }
    }

    fn limit(&self, longest: Nanos) {
        for &(lane, actor, number) in &self.places {
            let limit = Box::new(Limit { number, longest });
            self.lanes.tell(lane, LaneMessage::ToActor(actor, limit));
        }
    }
}

impl Server {
    /// Makes a disk of a device, or takes it up, and serves it. `lanes` are the mailboxes of all
    /// lanes.
    ///
    /// # Errors
    /// What the kernel refuses, with what to do about it.
    pub fn start(
        order: DiskOrder,
        lanes: Vec<Mailbox<LaneMessage>>,
        lapse: Lapse,
    ) -> Result<Server, UblkError> {
        let lanes = Lanes::new(lanes);
        let mut control = Control::open()?;
        let left = match order.number.filter(|_| order.take_up) {
            Some(number) => control.take_up(number)?,
            None => None,
        };
        let info = match left {
            Some(info) => info,
            None => control.add(NewDevice {
                number: order.number,
                queues: u16::try_from(order.lanes.count(lanes.count())).unwrap_or(u16::MAX),
                depth: DEPTH,
                io_bytes_max: IO_BYTES_MAX,
                outlives: order.outlives,
            })?,
        };
        let (events, inbox) = channel();
        let queues = Queues { lanes, places: Vec::new() };
        let mut disk = Running { control, number: info.device, queues, inbox, ended: 0 };
        let started = disk.start(order, &info, left.is_some(), &events);
        let (numbers, told) = match started {
            Ok(started) => started,
            Err(error) => {
                disk.take_back();
                return Err(error);
            }
        };
        let note = Arc::new(Mutex::new(None));
        let told_sectors = Arc::new(AtomicU64::new(told));
        let server = Server {
            number: info.device,
            numbers,
            queues: disk.queues.clone(),
            events,
            note: Arc::clone(&note),
            told_sectors: Arc::clone(&told_sectors),
            resizes: disk.control.resizes(),
            outlives: info.features & feature::USER_RECOVERY != 0,
            untrusted: is_untrusted(&info),
        };
        let mut keeper = Keeper { disk, note, told_sectors, lapse: Some(lapse) };
        let size = keeper.disk.queues.lanes.view(order.device).map(|view| view.len_sectors);
        keeper.resized(size.unwrap_or(told));
        let thread = std::thread::Builder::new().name("udm-ublk".to_owned());
        thread.spawn(move || keeper.run()).map_err(|error| UblkError {
            what: "start a thread for the disk".to_owned(),
            source: error,
            hint: "",
        })?;
        Ok(server)
    }

    /// N of `/dev/ublkbN`.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The kernel's numbers of the disk, major and minor.
    pub fn major_minor(&self) -> (u32, u32) {
        (self.numbers.disk_major, self.numbers.disk_minor)
    }

    /// What its users should know.
    pub fn note(&self) -> Option<String> {
        let size = self.note.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (size, self.untrusted) {
            (Some(size), true) => Some(format!("{UNTRUSTED}; {size}")),
            (None, true) => Some(UNTRUSTED.to_owned()),
            (size, false) => size,
        }
    }

    /// Whether the kernel can be told a new size.
    pub fn resizes(&self) -> bool {
        self.resizes
    }

    /// Whether the disk waits for the next daemon when this one dies.
    pub fn outlives(&self) -> bool {
        self.outlives
    }

    /// The size that the kernel knows, in sectors.
    pub fn told_sectors(&self) -> Sector {
        self.told_sectors.load(Ordering::Relaxed)
    }

    /// Calls `done`, or drops it, when the kernel has been told the size that the device has.
    pub fn settle(&self, done: Box<dyn FnOnce() + Send>) {
        // The queues spoke of the new size before anybody could ask for this, in the same channel.
        // Fails if the thread has ended: there is no disk.
        let _ = self.events.send(Event::Settle(done));
    }

    /// Whether somebody holds the disk: it is mounted, or part of a volume.
    pub fn is_held(&self) -> bool {
        is_held(self.number)
    }

    /// Ends the disk when what is under way is answered, or with `cut` at once. `done` is called,
    /// or dropped, at the end.
    pub fn stop(&self, cut: bool, done: Box<dyn FnOnce() + Send>) {
        if cut {
            self.queues.cut();
        }
        // Fails if the thread has ended, which is what is wanted.
        let _ = self.events.send(Event::Stop(done));
    }
}

/// Whether the kernel does not trust the device, since it was made without root.
fn is_untrusted(info: &DeviceInfo) -> bool {
    info.features & feature::UNPRIVILEGED_DEV != 0
}

/// Opens the disk for itself, which is refused while somebody holds it.
fn is_held(number: u32) -> bool {
    // O_EXCL without O_CREAT: of a block device, that nobody else may have claimed it.
    let exclusive = i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap_or(0);
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(exclusive).open(format!("/dev/ublkb{number}"));
    opened.is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
}

/// A device, its queues and what they say.
struct Running {
    control: Control,
    number: u32,
    queues: Queues,
    inbox: Receiver<Event>,
    /// Queues that have ended.
    ended: usize,
}

impl Running {
    /// Serves a device that has been added or taken up. Gives the disk's numbers, and the size
    /// that the kernel knows.
    fn start(
        &mut self,
        order: DiskOrder,
        info: &DeviceInfo,
        left: bool,
        events: &Sender<Event>,
    ) -> Result<(DeviceNumbers, Sector), UblkError> {
        let view = self.queues.lanes.view(order.device);
        let (len_sectors, limits) =
            view.map_or_else(Default::default, |view| (view.len_sectors, view.limits));
        let told = params(len_sectors, &limits, order.read_only).map_err(|too_large| {
            let BlockTooLarge(bytes) = too_large;
            let what = format!("make a disk with blocks of {bytes} bytes");
            UblkError::new(what, Errno(22), "a disk of Linux has blocks of 4096 bytes at most")
        })?;
        self.spawn_queues(order, info, events)?;
        self.await_queues()?;
        match left {
            true => self.control.go_on(self.number)?,
            false => self.control.start(self.number, &told)?,
        }
        let io_timeout = format!("/sys/block/ublkb{}/queue/io_timeout", self.number);
        if is_untrusted(info) {
            await_file(&format!("/dev/ublkb{}", self.number))?;
            // A rule of udev may have given it more time.
            let told = fs::read_to_string(io_timeout).ok();
            let limit_ms = told.and_then(|text| text.trim().parse().ok());
            let (part, whole) = PATIENCE;
            let longest_ms = limit_ms.unwrap_or(KERNEL_LIMIT_MS) * part / whole;
            self.queues.limit(Nanos::from_millis(longest_ms));
        } else {
            // A wish: without it the end of a server under full load is noticed late.
            let _ = fs::write(io_timeout, LOOK_AT_SERVER_MS.to_string());
        }
        let params = self.control.params(self.number)?;
        Ok((params.numbers, params.basic.len_sectors))
    }

    fn spawn_queues(
        &mut self,
        order: DiskOrder,
        info: &DeviceInfo,
        events: &Sender<Event>,
    ) -> Result<(), UblkError> {
        let path = format!("/dev/ublkc{}", self.number);
        let failed = |error| UblkError {
            what: format!("open {path}"),
            source: error,
            hint: "the kernel makes it in a devtmpfs; is /dev one?",
        };
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        for queue in 0..info.queues {
            let fd = OwnedFd::from(file.try_clone().map_err(failed)?);
            let number = NEXT_QUEUE.fetch_add(1, Ordering::Relaxed);
            let setup = QueueSetup {
                number,
                device: order.device,
                read_only: order.read_only,
                queue,
                depth: info.depth,
                way: if is_untrusted(info) { DataWay::Named } else { DataWay::Copied },
                fd,
            };
            let events = events.clone();
            // Fails if the thread has ended, which then waits for nobody.
            let report = Box::new(move |report| drop(events.send(Event::Queue(report))));
            let lane = self.queues.lanes.lane_of(order.lanes, queue);
            let make =
                move || -> Box<dyn udm_core::actor::Actor> { Box::new(Queue::new(setup, report)) };
            let actor = self.queues.lanes.spawn(lane, make);
            let actor = actor.ok_or_else(|| UblkError::new("reach a lane", Errno(5), ""))?;
            self.queues.places.push((lane, actor, number));
        }
        Ok(())
    }

    /// Waits until the kernel has all commands of all queues.
    fn await_queues(&mut self) -> Result<(), UblkError> {
        let refused = |errno| {
            let hint = match errno {
                Errno(38) => "ublk needs the io_uring driver; see the daemon's first line",
                _ => "",
            };
            UblkError::new("wait for requests", errno, hint)
        };
        let mut ready = 0;
        while ready < self.queues.places.len() {
            match self.inbox.recv() {
                Ok(Event::Queue(QueueReport::Ready)) => ready += 1,
                // The size is looked at when the disk is there.
                Ok(Event::Queue(QueueReport::Resized(_) | QueueReport::Overdue)) => {}
                Ok(Event::Queue(QueueReport::Refused(errno))) => return Err(refused(errno)),
                Ok(Event::Queue(QueueReport::Ended)) => {
                    self.ended += 1;
                    return Err(refused(Errno(19)));
                }
                // Nobody can stop it yet.
                Ok(Event::Stop(_) | Event::Settle(_)) | Err(_) => return Err(refused(Errno(5))),
            }
        }
        Ok(())
    }

    /// Stops the disk, waits for its queues, deletes the device. Gives who waits for that.
    fn take_back(&mut self) -> Vec<Done> {
        let mut waiting = Vec::new();
        if let Err(error) = self.control.stop(self.number) {
            eprintln!("udm: warning: {error}");
        }
        while self.ended < self.queues.places.len() {
            match self.inbox.recv() {
                Ok(Event::Queue(QueueReport::Ended)) => self.ended += 1,
                Ok(Event::Queue(_)) => {}
                Ok(Event::Stop(done) | Event::Settle(done)) => waiting.push(done),
                Err(_) => break,
            }
        }
        if let Err(error) = self.control.delete(self.number) {
            eprintln!("udm: warning: {error}");
        }
        waiting
    }
}

/// What the thread has.
struct Keeper {
    disk: Running,
    note: Arc<Mutex<Option<String>>>,
    told_sectors: Arc<AtomicU64>,
    lapse: Option<Lapse>,
}

impl Keeper {
    fn run(mut self) {
        let why = loop {
            match self.disk.inbox.recv() {
                Ok(Event::Queue(QueueReport::Ready)) => {}
                Ok(Event::Queue(QueueReport::Resized(len_sectors))) => self.resized(len_sectors),
                Ok(Event::Queue(QueueReport::Refused(errno))) => {
                    let error = std::io::Error::from_raw_os_error(errno.0);
                    break format!("the kernel refused an answer: {error}");
                }
                Ok(Event::Queue(QueueReport::Overdue)) => {
                    break "a request took so long that the kernel was about to kill this daemon \
                           (a disk made without root; queue/io_timeout is its limit)"
                        .to_owned();
                }
                Ok(Event::Queue(QueueReport::Ended)) => {
                    self.disk.ended += 1;
                    break "the disk was deleted".to_owned();
                }
                Ok(Event::Settle(done)) => done(),
                Ok(Event::Stop(done)) => {
                    let mut waiting = self.disk.take_back();
                    waiting.push(done);
                    waiting.into_iter().for_each(|done| done());
                    return;
                }
                Err(_) => return,
            }
        };
        // It is not served any more, so nobody waits for what the device still does.
        self.disk.queues.cut();
        let waiting = self.disk.take_back();
        waiting.into_iter().for_each(|done| done());
        if let Some(lapse) = self.lapse.take() {
            lapse(&why);
        }
    }

    /// The device has this size; the kernel is told.
    fn resized(&mut self, len_sectors: Sector) {
        let told_sectors = self.told_sectors.load(Ordering::Relaxed);
        if len_sectors == told_sectors {
            return self.set_note(None);
        }
        let number = self.disk.number;
        match self.disk.control.resize(number, len_sectors) {
            Ok(()) => {
                self.told_sectors.store(len_sectors, Ordering::Relaxed);
                self.set_note(None);
            }
            Err(error) => {
                let text = format!(
                    "/dev/ublkb{number} keeps its {told_sectors} sectors, the device has {len_sectors}: \
                     {error} (Linux 6.16 and newer can; elsewhere unexport and export it again)"
                );
                eprintln!("udm: warning: {text}");
                self.set_note(Some(text));
            }
        }
    }

    fn set_note(&self, text: Option<String>) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}
