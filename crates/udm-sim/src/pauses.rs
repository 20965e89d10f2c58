//! Suspends without a swap: plain, of a stack, in the wrong order, taken back; and bad tables.
//!
//! A suspend must end in one of the ways it promises, and leave the device as it was if it was
//! given up. Here it is asked for where it cannot be granted (over a device that is suspended
//! already, so that I/O is stuck below), and taken back while it drains, by its ticket or by a
//! resume.
//!
//! Bad tables belong here too, for they have the same rule: a refusal changes nothing.
//!
//! The tricky case is a suspend that is taken back: its answer may be good all the same, if it was
//! quicker. Then the device is suspended and has to be resumed.

use crate::director::{Suspended, key};
use crate::volume::Volume;
use udm_core::ErrorCode;
use udm_core::lifecycle::{Request, SuspendOptions};
use udm_types::Nanos;

impl Volume {
    /// Suspends and resumes.
    pub(crate) async fn pause(&mut self) {
        let node = self.director.pick(self.stack.nodes.len());
        let options = self.director.draw_options();
        if self.suspend(node, options).await == Suspended::Yes {
            self.director.nap(30).await;
            self.resume(node, SuspendOptions::default()).await;
        }
    }

    /// Suspends a stack from the top down, resumes from the bottom up.
    pub(crate) async fn pause_stack(&mut self) {
        let mut asleep = Vec::new();
        for node in 0..self.stack.nodes.len() {
            let options = self.director.draw_options();
            if self.suspend(node, options).await == Suspended::Yes {
                asleep.push(node);
            }
        }
        self.director.nap(20).await;
        for node in asleep.into_iter().rev() {
            self.resume(node, SuspendOptions::default()).await;
        }
        self.director.stage.get().tally.count("stack pauses");
    }

    /// Suspends a device below, and then, with a deadline, the top, whose I/O is now stuck.
    pub(crate) async fn pause_upside_down(&mut self) {
        let below = 1 + self.director.pick(self.stack.nodes.len() - 1);
        if self.suspend(below, self.director.draw_options()).await == Suspended::No {
            return;
        }
        let mut options = self.director.draw_options();
        let limit_ms = self.director.stage.get().rng.u64(1..30);
        options.deadline = Some(Nanos::from_millis(limit_ms));
        let top = self.suspend(0, options).await;
        self.director.nap(5).await;
        self.resume(below, SuspendOptions::default()).await;
        if top == Suspended::Yes {
            self.resume(0, SuspendOptions::default()).await;
        }
        self.director.stage.get().tally.count("upside-down pauses");
    }

    /// Asks for a suspend and takes it back while it may still be draining.
    pub(crate) async fn pause_and_change_mind(&mut self) {
        let director = self.director.clone();
        let node = director.pick(self.stack.nodes.len());
        let name = self.stack.nodes[node].name.clone();
        let (mut options, ticket) = (director.draw_options(), director.ticket());
        options.deadline = None;
        self.forget_order_above(node);
        let window = self.open_flush_window(node, &options);
        let waiting =
            director.control.send(Request::Suspend { device: key(&name), options, ticket });
        director.nap(2).await;
        if director.once_in(2) {
            let answer = director.control.ask(Request::Cancel { ticket }).await;
            director.expect("cancel", answer);
        } else {
            self.resume(node, SuspendOptions::default()).await;
        }
        match director.control.answer_to(waiting).await {
            Ok(_) => {}
            Err(error) if error.code() == ErrorCode::SuspendCancelled => {
                director.stage.get().tally.count("suspends taken back");
            }
            Err(error) => director.violate(format!("a suspend taken back answered {error}")),
        }
        self.close_flush_window(window);
        // If it was quicker, the device is suspended now; if not, this does nothing.
        self.resume(node, SuspendOptions::default()).await;
    }

    /// A table that refuses to resume on one lane: the device stays suspended until it has a
    /// better one.
    pub(crate) async fn refuse_to_resume(&mut self) {
        let director = self.director.clone();
        let node = director.pick(self.stack.nodes.len());
        let name = self.stack.nodes[node].name.clone();
        if self.stack.nodes[node].multi.is_some() {
            // No other target may come in its place.
            return;
        }
        let (lanes, block) = {
            let state = director.stage.get();
            (state.swarm.lanes, state.swarm.block_sectors)
        };
        if self.suspend(node, director.draw_options()).await == Suspended::No {
            return;
        }
        // No I/O ever reaches it, so it need not mean what the device means.
        let (len, lane) = (self.stack.nodes[node].len_sectors(), director.pick(lanes));
        let text = format!("0 {block} sulk disk0 0 {lane}\n{block} {} error", len - block);
        let text = if len > block { text } else { format!("0 {block} sulk disk0 0 {lane}") };
        if !director.load(&name, &text).await {
            return;
        }
        let (device, options) = (key(&name), SuspendOptions::default());
        let request = Request::Resume { device, options, ticket: director.ticket() };
        let answer = director.control.ask(request).await;
        director.expect_refusal("a resume of a sulking table", ErrorCode::PreresumeFailed, answer);
        if let Some(status) = director.status(&name).await
            && !status.suspended
        {
            director.violate(format!("{name} runs with a table that refused to resume"));
        }
        director.nap(5).await;
        let dress = director.dress(&self.stack, node, false, false);
        if !director.load(&name, &dress.text).await {
            return;
        }
        let window = self.expect_dress(node, &dress);
        let done = self.resume(node, SuspendOptions::default()).await;
        self.dressed(node, &dress, window, done);
        director.stage.get().tally.count("refused resumes");
    }

    /// Tables that must be refused: one that stands on itself, one beyond the end of a disk.
    pub(crate) async fn load_nonsense(&mut self) {
        let director = self.director.clone();
        let node = director.pick(self.stack.nodes.len());
        let name = self.stack.nodes[node].name.clone();
        let block = director.stage.get().swarm.block_sectors;
        let text = format!("0 {block} linear dm:{name} 0");
        if self.stack.nodes[node].multi.is_none()
            && let Some(table) = director.build(&text).await
        {
            let answer = director.control.ask(Request::Load { device: key(&name), table }).await;
            let what = "a load of a table that stands on itself";
            director.expect_refusal(what, ErrorCode::SelfReference, answer);
        }
        let text = format!("0 {block} linear disk0 {}", block << 20);
        director.expect_bad_table(&text, ErrorCode::DeviceTooSmall);
        director.stage.get().tally.count("bad tables");
    }
}
