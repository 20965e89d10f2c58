//! What happens to a volume while the load runs: swaps, moves, resizes, death, pauses, and
//! questions.
//!
//! Each change is what a user would type, in one of the orders a user might: load before or after
//! the suspend, or a resume that suspends by itself. A change that is given up (its suspend ran
//! into a deadline) leaves the device as it was, and the inactive slot is cleared.
//!
//! | change | data | who is told |
//! |---|---|---|
//! | swap | stays where it is | nobody: only the form changes |
//! | relayout | copied by the world while suspended, durable as a mover leaves it | new places |
//! | resize | new space is zero; what is cut off is gone | sizes, places |
//! | death | unreachable for a while | a window of errors |
//!
//! The tricky case is a dead table and the flush: a flush has nothing to do on it and succeeds, so
//! what is in the caches below must be settled first, as whoever takes a device away has to.

use crate::director::{Suspended, key};
use crate::dress::{Dress, Inventor};
use crate::layout::{Part, Spot};
use crate::value::SECTOR_LEN;
use crate::vault;
use crate::volume::Volume;
use udm_core::ErrorCode;
use udm_core::lifecycle::{Reply, Request, StatusKind, SuspendOptions};
use udm_types::DmName;

impl Volume {
    /// Another table of the same meaning.
    pub(crate) async fn swap(&mut self) {
        let director = self.director.clone();
        let node = director.pick(self.stack.nodes.len());
        let dress = director.dress(&self.stack, node, false, false);
        director.stage.get().tally.count("swaps begun");
        if self.put_on(node, &dress).await {
            director.stage.get().tally.count("swaps");
        }
    }

    /// Puts a table on a node, in one of the possible orders. True if it is live.
    async fn put_on(&mut self, node: usize, dress: &Dress) -> bool {
        let director = self.director.clone();
        let name = self.stack.nodes[node].name.clone();
        let options = director.draw_options();
        let order = director.pick(6);
        let load_first = order < 3;
        if load_first && !director.load(&name, &dress.text).await {
            return false;
        }
        if order == 0 && director.once_in(3) {
            director.clear(&name).await;
            return false;
        }
        let suspend_apart = order != 1;
        if suspend_apart && self.suspend(node, options.clone()).await == Suspended::No {
            director.clear(&name).await;
            return false;
        }
        if suspend_apart {
            director.nap(10).await;
        }
        if !load_first && !director.load(&name, &dress.text).await {
            self.resume(node, SuspendOptions::default()).await;
            return false;
        }
        let window = self.expect_dress(node, dress);
        let resume_options = if suspend_apart { SuspendOptions::default() } else { options };
        let done = self.resume(node, resume_options).await;
        self.dressed(node, dress, window, done);
        if !done {
            director.clear(&name).await;
        }
        done
    }

    /// Moves what a node has on disks to other places.
    pub(crate) async fn relayout(&mut self) {
        let director = self.director.clone();
        let candidates: Vec<usize> =
            (0..self.stack.nodes.len()).filter(|&node| self.may_move(node)).collect();
        if candidates.is_empty() {
            return;
        }
        let node = candidates[director.pick(candidates.len())];
        let Some(parts) = self.invent_parts(node) else { return };
        let name = self.stack.nodes[node].name.clone();
        if self.suspend(node, director.draw_options()).await == Suspended::No {
            return self.bury_parts(&parts);
        }
        let old = std::mem::replace(&mut self.stack.nodes[node].parts, parts);
        let (_, spots) = self.stack.map();
        self.copy_to(&spots);
        self.place(spots);
        let replaced: Vec<Part> = old
            .iter()
            .filter(|part| part.legs().iter().any(|leg| !leg.is_node()))
            .cloned()
            .collect();
        self.bury_parts(&replaced);
        director.nap(10).await;
        let dress = director.dress(&self.stack, node, false, false);
        if !director.load(&name, &dress.text).await {
            return;
        }
        let window = self.expect_dress(node, &dress);
        let done = self.resume(node, SuspendOptions::default()).await;
        self.dressed(node, &dress, window, done);
        director.stage.get().tally.count("relayouts");
    }

    /// True if a node has something on disks that can be moved; a LUN is where it is.
    fn may_move(&self, node: usize) -> bool {
        let node = &self.stack.nodes[node];
        node.on_disks() && node.multi.is_none()
    }

    /// New parts of the same lengths on fresh space for everything a node has on disks.
    fn invent_parts(&self, node: usize) -> Option<Vec<Part>> {
        let mut state = self.director.stage.get();
        let state = &mut *state;
        let mut space = self.director.space.borrow_mut();
        let ops = &state.ops;
        space.reclaim(|serial| ops.any_older_than(serial));
        let (rng, swarm) = (&mut state.rng, &state.swarm);
        let mut inventor = Inventor { rng, swarm, space: &mut space };
        let mut parts = Vec::new();
        for part in &self.stack.nodes[node].parts {
            let on_disk = part.legs().iter().any(|leg| !leg.is_node());
            parts.push(if on_disk { inventor.replacement(part.len)? } else { part.clone() });
        }
        Some(parts)
    }

    fn bury_parts(&self, parts: &[Part]) {
        let serial = self.director.stage.get().ops.next_serial();
        let mut space = self.director.space.borrow_mut();
        for part in parts {
            for leg in part.legs().iter().filter(|leg| !leg.is_node()) {
                space.bury(*leg, part.leg_len(), serial);
            }
        }
    }

    fn copy_to(&self, spots: &[Spot]) {
        let mut state = self.director.stage.get();
        for (from, to) in self.spots.iter().zip(spots) {
            if let (Some((from_disk, from)), Some((to_disk, to))) = (*from, *to)
                && (from_disk, from) != (to_disk, to)
            {
                let mut contents = [0; SECTOR_LEN];
                contents.copy_from_slice(state.disks[from_disk].cached_sector(from));
                state.disks[to_disk].put(to, &contents);
            }
        }
    }

    /// Grows or shrinks the top.
    pub(crate) async fn resize(&mut self) {
        let director = self.director.clone();
        if self.stack.nodes[0].multi.is_some() {
            return;
        }
        let is_vault = self.stack.vault().is_some();
        let old_parts = self.stack.nodes[0].parts.clone();
        let old_len = self.stack.nodes[0].len_sectors();
        let grow = director.once_in(2) || is_vault;
        let has_changed = match grow {
            true if is_vault => self.grow_vault(),
            true => self.append_part(),
            false => self.cut_tail(),
        };
        if !has_changed {
            return;
        }
        director.stage.get().tally.count(if grow { "grows begun" } else { "shrinks begun" });
        let name = self.stack.nodes[0].name.clone();
        let dress = director.dress(&self.stack, 0, false, false);
        let options = director.draw_options();
        let order = director.pick(3);
        let mut done = order != 0 || director.load(&name, &dress.text).await;
        if done && order != 2 {
            done = self.suspend(0, options.clone()).await == Suspended::Yes;
        }
        if done && order != 0 {
            done = director.load(&name, &dress.text).await;
        }
        if done {
            done = self.go_to_size(&dress, grow, order == 2, options).await;
        }
        let (kept, gone) = if done { (grow, old_parts) } else { (!grow, old_parts) };
        if !done {
            director.clear(&name).await;
            let tried = std::mem::replace(&mut self.stack.nodes[0].parts, gone);
            if !kept {
                self.bury_parts(&tried[tried.len() - 1..]);
            }
            director.stage.get().oracle.end_resize(self.index, old_len);
            return;
        }
        director.stage.get().tally.count(if grow { "grows" } else { "shrinks" });
        self.check_len(&name).await;
    }

    async fn go_to_size(
        &mut self,
        dress: &Dress,
        grow: bool,
        implied: bool,
        options: SuspendOptions,
    ) -> bool {
        let (classes, spots) = self.stack.map();
        let old_spots = self.spots.clone();
        self.director.stage.get().oracle.begin_resize(self.index, &classes);
        if grow {
            self.move_in(spots.clone());
        }
        let window = self.expect_dress(0, dress);
        let options = if implied { options } else { SuspendOptions::default() };
        let done = self.resume(0, options).await;
        self.dressed(0, dress, window, done);
        if done {
            let len = self.stack.nodes[0].len_sectors();
            self.director.stage.get().oracle.end_resize(self.index, len);
            self.place(spots);
        } else {
            self.place(old_spots);
        }
        done
    }

    fn append_part(&mut self) -> bool {
        let mut state = self.director.stage.get();
        let state = &mut *state;
        let mut space = self.director.space.borrow_mut();
        let ops = &state.ops;
        space.reclaim(|serial| ops.any_older_than(serial));
        if self.stack.nodes[0].len_sectors() > 400 * state.swarm.block_sectors {
            return false;
        }
        let (rng, swarm) = (&mut state.rng, &state.swarm);
        let units = rng.u64(1..40);
        let part = Inventor { rng, swarm, space: &mut space }.on_disks(units);
        self.stack.nodes[0].parts.extend(part.clone());
        part.is_some()
    }

    /// A compress volume grows to its table line. A shorter line hides the rest, and a longer one
    /// shows it again, so they are not drawn.
    fn grow_vault(&mut self) -> bool {
        let blocks = self.director.stage.get().rng.u64(1..8);
        let part = &mut self.stack.nodes[0].parts[0];
        let len = part.len + blocks * vault::BLOCK_SECTORS;
        let is_possible = len <= 2 * vault::BLOCKS_MAX * vault::BLOCK_SECTORS;
        part.len = if is_possible { len } else { part.len };
        is_possible
    }

    /// Drops the last part, if there is another.
    fn cut_tail(&mut self) -> bool {
        let parts = &mut self.stack.nodes[0].parts;
        if parts.len() < 2 {
            return false;
        }
        // Its space stays taken: the device may yet refuse to shrink, and old I/O may land there.
        parts.pop();
        true
    }

    async fn check_len(&self, name: &str) {
        let expected = self.stack.nodes[0].len_sectors();
        if self.director.stage.get().canary.is_some() {
            return;
        }
        if let Some(status) = self.director.status(name).await
            && status.len_sectors != expected
        {
            let found = status.len_sectors;
            self.director.violate(format!("{name} has {found} sectors, not {expected}"));
        }
    }

    /// The device fails for a while, as if what is below were dead, and is then replaced.
    pub(crate) async fn die_and_return(&mut self) {
        let director = self.director.clone();
        let name = self.stack.nodes[0].name.clone();
        if self.suspend(0, director.draw_options()).await == Suspended::No {
            return;
        }
        {
            let mut state = director.stage.get();
            for &(disk, sector) in self.spots.iter().flatten() {
                let mut contents = [0; SECTOR_LEN];
                contents.copy_from_slice(state.disks[disk].cached_sector(sector));
                state.disks[disk].put(sector, &contents);
            }
        }
        let len = self.stack.nodes[0].len_sectors();
        if !director.load(&name, &format!("0 {len} error")).await {
            return;
        }
        let window = director.stage.get().oracle.open_window(Some(self.index));
        self.resume(0, SuspendOptions::default()).await;
        director.stage.get().tally.count("deaths");
        director.nap(20).await;
        let dress = director.dress(&self.stack, 0, false, false);
        while !self.put_on(0, &dress).await {
            director.nap(10).await;
        }
        director.stage.get().oracle.close_window(window);
    }

    /// Another name, and the old one means nobody.
    pub(crate) async fn rename(&mut self) {
        let director = self.director.clone();
        let node = director.pick(self.stack.nodes.len());
        let old = self.stack.nodes[node].name.clone();
        let new = match old.strip_suffix('x') {
            Some(short) => short.to_owned(),
            None => format!("{old}x"),
        };
        let name = DmName::new(&new).expect("invariant: made of letters and digits");
        let answer = director.control.ask(Request::Rename { device: key(&old), name }).await;
        director.expect("rename", answer);
        self.stack.nodes[node].name = new;
        let answer = director.control.ask(Request::Status { device: key(&old) }).await;
        director.expect_refusal("status of an old name", ErrorCode::NoSuchDevice, answer);
    }

    /// Questions, which change nothing.
    pub(crate) async fn look(&mut self) {
        let director = self.director.clone();
        let node = director.pick(self.stack.nodes.len());
        let name = self.stack.nodes[node].name.clone();
        let device = || key(&name);
        let request = match director.pick(5) {
            0 => Request::Status { device: device() },
            1 => Request::TableStatus { device: device(), inactive: false, kind: StatusKind::Info },
            2 => {
                Request::TableStatus { device: device(), inactive: false, kind: StatusKind::Table }
            }
            3 => Request::Deps { device: device(), inactive: false },
            _ => Request::List,
        };
        let answer = director.control.ask(request).await;
        director.expect("a question", answer);
        if let Some(status) = director.status(&name).await {
            // A wait for an event that has been is answered at once; one for the next is cancelled
            // or answered by a swap, never left alone.
            let event_nr = status.event_nr.wrapping_sub(1);
            let ticket = director.ticket();
            let request = Request::Wait { device: device(), event_nr, ticket };
            let answer = director.control.ask(request).await;
            director.expect("a wait for a past event", answer);
            let ticket = director.ticket();
            let event_nr = status.event_nr;
            let waiting =
                director.control.send(Request::Wait { device: device(), event_nr, ticket });
            director.nap(3).await;
            let answer = director.control.ask(Request::Cancel { ticket }).await;
            director.expect("cancel", answer);
            match director.control.answer_to(waiting).await {
                Ok(Reply::Done(_)) => {}
                Err(error) if error.code() == ErrorCode::SuspendCancelled => {}
                other => director.violate(format!("a cancelled wait answered {other:?}")),
            }
        }
    }

    /// A message to a target; those that take none must say so.
    pub(crate) async fn message(&mut self) {
        let director = self.director.clone();
        let node = director.pick(self.stack.nodes.len());
        let len = self.stack.nodes[node].len_sectors();
        let device = key(&self.stack.nodes[node].name);
        let sector = director.stage.get().rng.u64(0..len);
        let words = match self.stack.vault() {
            None => vec!["release".to_owned()],
            Some(_) => vault::message(&mut director.stage.get().rng),
        };
        let answer = director.control.ask(Request::Message { device, sector, words }).await;
        if let Err(error) = answer
            && !matches!(error.code(), ErrorCode::UnknownMessage | ErrorCode::Suspended)
        {
            director.violate(format!("a message was refused: {error}"));
        }
    }
}
