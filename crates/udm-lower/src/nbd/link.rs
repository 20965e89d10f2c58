//! How the connections of a lane come and go.
//!
//! ```text
//! attempt --> Greeting --> up --> lost --> (at once, if it had worked) attempt
//!    |            |                  |
//!    +------------+------------------+--> pause: reconnect=MIN-MAX, doubling --> attempt
//! ```
//!
//! Rules. Attempts never block and run for ever: a server may come back after hours. An attempt has
//! a deadline of its own. A connection that worked is tried again at once, since a server that was
//! restarted is there already; one that never answered anything is not, or a server that hangs up
//! on every request would be called in a circle.
//!
//! Timers cannot be taken back and may outlive what they were set for, even this lane's part. So
//! nothing here trusts a timer: each looks at the clock and at what is due now.
//!
//! The tricky case is a stalled server. When a request is older than the timeout, all requests of
//! its connection end and the socket is closed. Their memory stays with the operations, and replies
//! that come after all find their socket closed: a new connection never sees them.

use super::connection::{Connection, Link};
use super::handshake::{Agreed, Handshake};
use super::lane::{NbdLane, Phase};
use super::open::connect_error;
use super::replies::Replies;
use super::state::LaneLink;
use super::wire::{CMD_DISC, HeaderStyle, REQUEST_BYTES_MAX, RequestHead};
use rustix::fd::IntoRawFd;
use udm_core::LowerCx;
use udm_lane::RawHandle;
use udm_types::{Nanos, Status};

/// How long connecting and shaking hands may take.
const HANDSHAKE_MS: u64 = 10_000;

/// How long the good-bye may take before the socket is closed without it.
const GOOD_BYE_MS: u64 = 1_000;

/// A connection that has stood so long has worked, although nobody asked anything.
const STOOD_LONG: Nanos = Nanos(1_000_000_000);

/// Timers of connecting; the connection's number stands above.
const TIMER_LINK: u64 = 0;
/// Timers of requests.
const TIMER_IO: u64 = 1;
const TIMER_KINDS: u64 = 2;

/// The timer for a connection's oldest request.
pub(super) fn io_timer_token(number: u16) -> u64 {
    u64::from(number) * TIMER_KINDS + TIMER_IO
}

fn link_timer_token(number: u16) -> u64 {
    u64::from(number) * TIMER_KINDS + TIMER_LINK
}

impl NbdLane {
    /// Begins all connections; takes over the one the device was opened with, if it is there.
    pub(super) fn connect_all(&mut self, cx: &mut LowerCx<'_>) {
        for at in 0..self.connections.len() {
            match self.connections[at].link {
                Link::Down(_) => {}
                Link::Greeting { .. } | Link::Up { .. } | Link::Leaving(_) => continue,
            }
            match self.shared.take_first() {
                Some((socket, agreed)) => {
                    match cx.driver().register(RawHandle(socket.into_raw_fd())) {
                        Ok(handle) => {
                            let connection = &mut self.connections[at];
                            // What follows is as after a handshake.
                            let handshake = Box::new(Handshake::new(""));
                            connection.link = Link::Greeting { handle, handshake, until: cx.now };
                            self.up(at, &agreed, cx);
                        }
                        Err(_) => self.attempt(at, cx),
                    }
                }
                None => self.attempt(at, cx),
            }
        }
        self.report();
    }

    /// Tries to connect.
    fn attempt(&mut self, at: usize, cx: &mut LowerCx<'_>) {
        let until = cx.now + self.handshake_limit();
        let connection = &mut self.connections[at];
        let peers = &self.shared.peers;
        let peer = &peers[connection.attempts as usize % peers.len()];
        connection.attempts = connection.attempts.wrapping_add(1);
        match cx.driver().connect(peer) {
            Ok(handle) => {
                let handshake = Box::new(Handshake::new(&self.shared.export));
                connection.link = Link::Greeting { handle, handshake, until };
                cx.set_timer(until, link_timer_token(connection.number));
                self.want_turn_end(cx);
            }
            Err(errno) => {
                self.shared.failed(&connect_error(errno, peer));
                self.pause(at, cx);
            }
        }
    }

    fn handshake_limit(&self) -> Nanos {
        let limit = Nanos::from_millis(HANDSHAKE_MS);
        match self.shared.options.timeout {
            Nanos::ZERO => limit,
            timeout => timeout.min(limit),
        }
    }

    /// After a failed attempt: when to try again.
    fn pause(&mut self, at: usize, cx: &mut LowerCx<'_>) {
        let options = &self.shared.options;
        let connection = &mut self.connections[at];
        let doublings = connection.failures.min(32);
        connection.failures = connection.failures.saturating_add(1);
        let span = options.retry_min.0.saturating_mul(1 << doublings).min(options.retry_max.0);
        // Up to a quarter less, so that lanes and devices do not all come at the same moment.
        let seed = u64::from(self.lane) << 48
            ^ u64::from(connection.number) << 32
            ^ u64::from(connection.attempts)
            ^ cx.now.0;
        let span = span - scramble(seed) % (span / 4).max(1);
        let due = cx.now + Nanos(span.max(options.retry_min.0.min(span)));
        connection.link = Link::Down(Some(due));
        cx.set_timer(due, link_timer_token(connection.number));
        self.give_up_waiting(cx);
    }

    /// Without a connection nobody waits any longer.
    fn give_up_waiting(&mut self, cx: &mut LowerCx<'_>) {
        if self.phase == Phase::Fresh {
            self.phase = Phase::Working;
        }
        if !self.is_any_up() {
            self.refuse_waiting(Status::Transport, cx);
        }
        self.report();
    }

    /// The handshake is over: requests may go.
    pub(super) fn up(&mut self, at: usize, agreed: &Agreed, cx: &mut LowerCx<'_>) {
        if let Err(why) = self.shared.adopt(agreed) {
            return self.lost(at, Status::Transport, &why, cx);
        }
        let connection = &mut self.connections[at];
        let Some(handle) = connection.handle() else { return };
        let style: HeaderStyle = agreed.style;
        let replies = Replies::new(style, connection.number);
        connection.link = Link::Up { handle, replies, style };
        connection.up_since = cx.now;
        if self.phase == Phase::Fresh {
            self.phase = Phase::Working;
        }
        self.report();
        self.start_waiting(cx);
        self.want_turn_end(cx);
    }

    /// A connection has gone, or has to go. Its requests end with `status`.
    pub(super) fn lost(&mut self, at: usize, status: Status, why: &str, cx: &mut LowerCx<'_>) {
        let connection = &mut self.connections[at];
        let number = connection.number;
        let stood = connection.is_up() && cx.now.since(connection.up_since) >= STOOD_LONG;
        // A server that stalls is not asked again at once.
        let worked = status != Status::Timeout && (connection.has_answered || stood);
        if !self.close_socket(at, cx) {
            return;
        }
        self.shared.failed(why);
        self.fail_requests(number, status, cx);
        if self.phase == Phase::LetGo {
            return;
        }
        if worked {
            self.connections[at].failures = 0;
            self.attempt(at, cx);
            self.give_up_waiting(cx);
        } else {
            self.pause(at, cx);
        }
    }

    /// Closes a connection's socket; false if there was none.
    fn close_socket(&mut self, at: usize, cx: &mut LowerCx<'_>) -> bool {
        let Some(handle) = self.connections[at].forget_socket() else { return false };
        // Shut down first: what is under way on it ends then, sends too.
        cx.driver().shutdown(handle);
        cx.driver().close(handle);
        true
    }

    /// A timer fired: something may be due.
    pub(super) fn timer_fired(&mut self, token: u64, cx: &mut LowerCx<'_>) {
        let at = (token / TIMER_KINDS) as usize;
        if at >= self.connections.len() {
            return;
        }
        match token % TIMER_KINDS {
            TIMER_IO => self.look_for_stall(at, cx),
            _ => self.link_due(at, cx),
        }
    }

    fn link_due(&mut self, at: usize, cx: &mut LowerCx<'_>) {
        match &self.connections[at].link {
            Link::Down(Some(due)) if *due <= cx.now => {
                self.attempt(at, cx);
                self.report();
            }
            Link::Greeting { until, .. } if *until <= cx.now => {
                self.lost(at, Status::Transport, "the server does not answer", cx);
            }
            Link::Leaving(_) => self.left(at, cx),
            Link::Down(_) | Link::Greeting { .. } | Link::Up { .. } => {}
        }
    }

    fn look_for_stall(&mut self, at: usize, cx: &mut LowerCx<'_>) {
        let timeout = self.shared.options.timeout;
        let connection = &mut self.connections[at];
        if connection.io_timer.is_none_or(|due| due > cx.now) {
            return;
        }
        connection.io_timer = None;
        let oldest = match connection.in_flight {
            0 => None,
            _ => self.requests.oldest(connection.number),
        };
        if oldest.is_some_and(|oldest| oldest + timeout <= cx.now) {
            let why = format!("no answer for {} ms", timeout.as_millis());
            self.lost(at, Status::Timeout, &why, cx);
        }
        self.watch(at, cx);
    }

    /// No table wants the device here: says so to the server, then closes.
    pub(super) fn say_good_bye(&mut self, cx: &mut LowerCx<'_>) {
        self.phase = Phase::LetGo;
        for at in 0..self.connections.len() {
            let connection = &mut self.connections[at];
            match &connection.link {
                Link::Up { handle, style, .. }
                    if !connection.outbox.is_sending() && connection.in_flight == 0 =>
                {
                    let (handle, style) = (*handle, *style);
                    let mut bytes = [0; REQUEST_BYTES_MAX];
                    let len = good_bye().encode(style, &mut bytes);
                    connection.outbox.push(&bytes[..len]);
                    connection.link = Link::Leaving(handle);
                    let due = cx.now + Nanos::from_millis(GOOD_BYE_MS);
                    cx.set_timer(due, link_timer_token(connection.number));
                    self.move_on(at, cx);
                }
                Link::Down(_) => connection.link = Link::Down(None),
                Link::Greeting { .. } | Link::Up { .. } | Link::Leaving(_) => {
                    let number = connection.number;
                    self.close_socket(at, cx);
                    self.fail_requests(number, Status::Transport, cx);
                }
            }
        }
        self.refuse_waiting(Status::Transport, cx);
        self.shared.set_lane(self.lane, None);
    }

    /// The good-bye is out, or nobody listens to it.
    pub(super) fn left(&mut self, at: usize, cx: &mut LowerCx<'_>) {
        self.close_socket(at, cx);
        if self.phase != Phase::LetGo {
            // A table came back meanwhile.
            self.attempt(at, cx);
            self.report();
        }
    }

    /// Tells how this lane stands.
    fn report(&self) {
        let is_connected = self.is_any_up();
        let due = |connection: &Connection| match connection.link {
            Link::Down(due) => due,
            Link::Greeting { .. } | Link::Up { .. } | Link::Leaving(_) => None,
        };
        let next = self.connections.iter().filter_map(due).min();
        let next_try_at = if is_connected { None } else { next };
        self.shared.set_lane(self.lane, Some(LaneLink { is_connected, next_try_at }));
    }
}

/// "I am going."
pub(super) fn good_bye() -> RequestHead {
    RequestHead { flags: 0, command: CMD_DISC, cookie: 0, offset_bytes: 0, len_bytes: 0 }
}

/// Mixes a number well (the finalizer of splitmix64).
fn scramble(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
