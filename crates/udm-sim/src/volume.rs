//! The life of a volume: made, used, changed in every way while the load runs, checked, removed.
//!
//! One script runs for each volume and changes one thing at a time; the load does not know. After
//! every change the model (`layout.rs`) and the oracle know what the tables mean. `changes.rs`
//! holds the changes themselves.
//!
//! The tricky case is when the oracle has to hear of a change: what may be from now on is told
//! *before* the request goes out, what can no longer be is told after the good answer. Between the
//! two both are legal, since nobody outside the engine can know the moment of the swap.

use crate::director::{Act, Director, Suspended, key};
use crate::disk::Owner;
use crate::dress::{Dress, Inventor};
use crate::layout::{Below, Part, Spot, Stack};
use crate::load::{Crew, LoadActor, Task};
use crate::value::SECTOR_LEN;
use crate::vault;
use std::cell::RefCell;
use std::rc::Rc;
use udm_core::lifecycle::{Reply, Request, SuspendOptions};
use udm_types::{DmName, Nanos};

/// A volume and its script.
pub(crate) struct Volume {
    /// What it works with.
    pub(crate) director: Director,
    /// Its number for the oracle.
    pub(crate) index: usize,
    /// Its devices.
    pub(crate) stack: Stack,
    /// Where its sectors live now.
    pub(crate) spots: Vec<Spot>,
    crew: Rc<RefCell<Crew>>,
}

/// The script of a volume, from the first act to the last.
pub(crate) async fn live(director: Director, index: usize) {
    let mut round = 0;
    loop {
        round += 1;
        let Some(mut volume) = Volume::make(&director, index, round).await else {
            director.finished();
            director.until(Act::Sweep).await;
            director.finished();
            director.until(Act::Leave).await;
            director.finished();
            return;
        };
        let churn = volume.play().await;
        if churn && director.playing() {
            volume.retire().await;
            volume.remove().await;
            continue;
        }
        volume.calm().await;
        director.finished();
        director.until(Act::Sweep).await;
        volume.sweep().await;
        director.finished();
        director.until(Act::Leave).await;
        volume.remove().await;
        director.finished();
        return;
    }
}

impl Volume {
    /// Makes the devices from the bottom up and starts the load.
    async fn make(director: &Director, index: usize, round: u32) -> Option<Volume> {
        let stack = {
            let mut state = director.stage.get();
            let state = &mut *state;
            let mut space = director.space.borrow_mut();
            let ops = &state.ops;
            space.reclaim(|serial| ops.any_older_than(serial));
            let (rng, swarm) = (&mut state.rng, &state.swarm);
            let mut inventor = Inventor { rng, swarm, space: &mut space };
            let name = format!("v{index}r{round}");
            let vault = state.disks.iter().position(|disk| disk.vault.is_some() && index == 0);
            match vault {
                None => inventor.stack(&name)?,
                Some(disk) => {
                    let is_tight = state.disks[disk].is_tight();
                    let stack = inventor.vault(&name, disk, is_tight);
                    let len_sectors = stack.nodes[0].len_sectors();
                    vault::format(&mut state.disks[disk], len_sectors, &mut state.rng);
                    state.tally.count("compress volumes");
                    if is_tight {
                        state.tally.count("compress volumes with little space");
                    }
                    stack
                }
            }
        };
        let mut volume = Volume::over(director, index, stack);
        for node in (0..volume.stack.nodes.len()).rev() {
            if volume.make_device(node).await.is_none() {
                volume.unmake(node).await;
                return None;
            }
        }
        director.stage.get().tally.count("volumes");
        let (actors, lanes) = {
            let state = director.stage.get();
            (state.swarm.actors, state.swarm.lanes)
        };
        for _ in 0..actors {
            volume.install(director.pick(lanes), Task::Mixed);
        }
        Some(volume)
    }

    /// A volume over a stack whose devices do not exist yet.
    pub(crate) fn over(director: &Director, index: usize, stack: Stack) -> Volume {
        let (classes, spots) = stack.map();
        {
            let mut state = director.stage.get();
            state.oracle.open_volume(index, classes);
            // The cleaner leaves segments alone that it could not read.
            let has_faults = state.swarm.faults.eio > 0;
            if stack.vault().is_some_and(|disk| has_faults || state.disks[disk].is_tight()) {
                state.oracle.may_be_full(index);
            }
        }
        let (crew, director) = (Rc::default(), director.clone());
        let mut volume = Volume { director, index, stack, spots: Vec::new(), crew };
        volume.move_in(spots);
        volume
    }

    async fn make_device(&mut self, node: usize) -> Option<()> {
        self.create_device(node).await?;
        let dress = self.director.dress(&self.stack, node, false, true);
        self.first_dress(node, dress).await
    }

    pub(crate) async fn create_device(&mut self, node: usize) -> Option<()> {
        let director = self.director.clone();
        let name = self.stack.nodes[node].name.clone();
        let name = DmName::new(&name).expect("invariant: made of letters and digits");
        let request = Request::Create { name, uuid: None, minor: None };
        let answer = director.control.ask(request).await;
        let Reply::Done(Some(status)) = director.expect("create", answer)? else {
            director.violate("create answered something else".into());
            return None;
        };
        self.stack.nodes[node].id = Some(status.id);
        Some(())
    }

    /// The first table of a device.
    pub(crate) async fn first_dress(&mut self, node: usize, dress: Dress) -> Option<()> {
        let name = self.stack.nodes[node].name.clone();
        if !self.director.load(&name, &dress.text).await {
            return None;
        }
        let window = self.expect_dress(node, &dress);
        let done = self.director.resume(&name, SuspendOptions::default()).await;
        self.dressed(node, &dress, window, done);
        done.then_some(())
    }

    pub(crate) fn install(&self, lane: usize, task: Task) {
        let Some(device) = self.stack.nodes[0].id else { return };
        let crew = Rc::clone(&self.crew);
        let stage = self.director.stage.clone();
        let actor = LoadActor::new(stage, crew, self.index, device, task);
        self.director.control.install(lane, Box::new(actor));
    }

    /// Changes things until the act is over; true if the volume shall be made anew.
    async fn play(&mut self) -> bool {
        while self.director.playing() {
            let pace_ms = self.director.stage.get().swarm.pace_ms;
            self.director.nap(pace_ms).await;
            if !self.director.playing() {
                break;
            }
            let (swarm, roll) = {
                let mut state = self.director.stage.get();
                (state.swarm.clone(), state.rng.u32(0..24))
            };
            match roll {
                0..=2 if swarm.luns > 0 && self.director.once_in(2) => self.path_message().await,
                3 if swarm.luns > 0 && self.director.once_in(2) => self.starve().await,
                0..=5 if swarm.swaps => self.swap().await,
                6..=8 if swarm.relayouts => self.relayout().await,
                9..=11 if swarm.resizes => self.resize().await,
                12 if swarm.dead_tables => self.die_and_return().await,
                13 | 14 if swarm.suspends => self.pause().await,
                15 if swarm.suspends && self.stack.nodes.len() > 1 => self.pause_stack().await,
                16 => self.rename().await,
                17 => self.look().await,
                18 => self.message().await,
                20 if swarm.suspends => self.pause_and_change_mind().await,
                21 if swarm.suspends && swarm.deadlines && self.stack.nodes.len() > 1 => {
                    self.pause_upside_down().await;
                }
                22 => self.load_nonsense().await,
                23 if swarm.swaps && !swarm.races => self.refuse_to_resume().await,
                19 if swarm.churn && self.director.once_in(3) => return true,
                _ => {}
            }
        }
        false
    }

    /// Leaves every device running, whatever others did to it.
    pub(crate) async fn calm(&mut self) {
        while self.director.progress.meddlers.get() > 0 {
            self.director.control.sleep(Nanos::from_millis(1)).await;
        }
        for node in (0..self.stack.nodes.len()).rev() {
            let name = self.stack.nodes[node].name.clone();
            self.director.clear(&name).await;
            if node == 0 {
                self.director.stage.get().oracle.resuming(self.index, false);
            }
            if !self.director.resume(&name, SuspendOptions::default()).await {
                self.director.violate(format!("{name} cannot be resumed"));
            }
            if self.stack.nodes[node].multi.is_some() {
                self.bring_paths(node).await;
            } else if self.stack.nodes[node].window.is_some() {
                // A target that fails by design is a fault too, and is healed.
                self.dress_plainly(node).await;
            }
        }
        self.stop_load().await;
    }

    async fn dress_plainly(&mut self, node: usize) {
        let name = self.stack.nodes[node].name.clone();
        let dress = self.director.dress(&self.stack, node, true, false);
        self.director.load(&name, &dress.text).await;
        let window = self.expect_dress(node, &dress);
        let done = self.director.resume(&name, SuspendOptions::default()).await;
        self.dressed(node, &dress, window, done);
    }

    /// Stops the load and waits until its last bio is back.
    pub(crate) async fn stop_load(&mut self) {
        self.crew.borrow_mut().stopped = true;
        let mut calm = !self.director.playing();
        while self.crew.borrow().working > 0 {
            self.director.control.sleep(Nanos::from_millis(1)).await;
            if !calm && !self.director.playing() {
                // Begun in play: no path in use may be one that lives on.
                calm = true;
                for node in (0..self.stack.nodes.len()).rev() {
                    self.bring_paths(node).await;
                }
            }
        }
        self.crew = Rc::default();
    }

    /// Reads and flushes everything, then looks at disks and gauges.
    pub(crate) async fn sweep(&mut self) {
        let lanes = self.director.stage.get().swarm.lanes;
        self.install(self.director.pick(lanes), Task::Sweep { next: 0, flushed: false });
        while self.crew.borrow().working > 0 {
            self.director.control.sleep(Nanos::from_millis(1)).await;
        }
        {
            let mut state = self.director.stage.get();
            let state = &mut *state;
            state.oracle.check_cached(self.index, &state.disks);
            for (index, disk) in state.disks.iter().enumerate() {
                let left = disk.unsettled().find(|&sector| {
                    disk.owner(sector).is_some_and(|owner| owner.volume == self.index)
                });
                if let (Some(sector), None) = (left, state.canary) {
                    let text = format!("disk {index} sector {sector} is not durable after a flush");
                    state.oracle.violate(text);
                }
            }
        }
        // Targets with work of their own may still be at it, through delays and holds below.
        self.director.control.sleep(Nanos::from_secs(1)).await;
        for node in 0..self.stack.nodes.len() {
            let name = self.stack.nodes[node].name.clone();
            self.check_gauges(&name).await;
            if let Some(status) = self.director.status(&name).await
                && (status.suspended || status.suspend.is_some())
            {
                self.director.violate(format!("{name} is still suspended at the end"));
            }
        }
    }

    async fn check_gauges(&self, name: &str) {
        let answer = self.director.control.ask(Request::Gauges { device: key(name) }).await;
        let Ok(Reply::Gauges(gauges)) = answer else {
            return self.director.violate(format!("no gauges of {name}"));
        };
        let open = gauges.in_flight + gauges.held + gauges.requests.waiting;
        if open != 0 || gauges.contract_breaches != 0 {
            self.director.violate(format!("{name} is idle, but its gauges say {gauges:?}"));
        }
    }

    /// The load ends here; the oracle forgets the volume.
    async fn retire(&mut self) {
        self.stop_load().await;
    }

    /// Removes what there is of a stack that was not finished: a meddler was in between.
    async fn unmake(&mut self, top: usize) {
        for node in top..self.stack.nodes.len() {
            if self.stack.nodes[node].id.is_some() {
                let device = key(&self.stack.nodes[node].name);
                let request = Request::Remove { device, deferred: false };
                let answer = self.director.control.ask(request).await;
                self.director.expect("remove", answer);
            }
            if let Some(window) = self.stack.nodes[node].window.take() {
                self.director.stage.get().oracle.close_window(window);
            }
        }
        self.stage_out();
    }

    /// Removes the devices from the top down.
    pub(crate) async fn remove(&mut self) {
        if !self.director.stage.get().swarm.races && self.director.once_in(3) {
            return self.remove_at_last_close().await;
        }
        for node in 0..self.stack.nodes.len() {
            let name = self.stack.nodes[node].name.clone();
            let legs = self.stack.nodes[node].parts.iter().flat_map(Part::legs);
            let mut below = legs.filter_map(|leg| match leg.below {
                Below::Node(below) => Some(below),
                Below::Disk(_) => None,
            });
            if let Some(below) = below.next_back()
                && self.director.once_in(4)
            {
                let device = key(&self.stack.nodes[below].name);
                let request = Request::Remove { device, deferred: false };
                let answer = self.director.control.ask(request).await;
                let code = udm_core::ErrorCode::InUse;
                self.director.expect_refusal("remove of a device in use", code, answer);
            }
            self.forget_paths(node);
            let request = Request::Remove { device: key(&name), deferred: false };
            let answer = self.director.control.ask(request).await;
            self.director.expect("remove", answer);
            if let Some(window) = self.stack.nodes[node].window.take() {
                self.director.stage.get().oracle.close_window(window);
            }
        }
        self.stage_out();
    }

    /// Marks what is below for removal, then removes the top: the rest must follow by itself.
    async fn remove_at_last_close(&mut self) {
        let names: Vec<String> = self.stack.nodes.iter().map(|node| node.name.clone()).collect();
        for (index, name) in names.iter().enumerate().rev() {
            self.forget_paths(index);
            let request = Request::Remove { device: key(name), deferred: index > 0 };
            let answer = self.director.control.ask(request).await;
            self.director.expect("deferred remove", answer);
        }
        for name in &names {
            let mut patience = 5000;
            while self.director.control.ask(Request::Status { device: key(name) }).await.is_ok() {
                patience -= 1;
                if patience == 0 {
                    return self.director.violate(format!("{name} stayed after its last close"));
                }
                self.director.nap(1).await;
            }
        }
        for node in &mut self.stack.nodes {
            if let Some(window) = node.window.take() {
                self.director.stage.get().oracle.close_window(window);
            }
        }
        self.director.stage.get().tally.count("cascades of removals");
        self.stage_out();
    }

    fn stage_out(&mut self) {
        let mut state = self.director.stage.get();
        state.tally.count("volumes removed");
        for (disk, sector) in self.spots.drain(..).flatten() {
            state.disks[disk].set_owner(sector, None);
        }
        state.oracle.close_volume(self.index);
        let serial = state.ops.next_serial();
        let mut space = self.director.space.borrow_mut();
        for (leg, len) in self.stack.disk_legs() {
            space.bury(leg, len, serial);
        }
    }

    /// The volume's sectors live there from now on. New places must be empty or filled already.
    pub(crate) fn place(&mut self, spots: Vec<Spot>) {
        let mut state = self.director.stage.get();
        for &(disk, sector) in self.spots.iter().flatten() {
            state.disks[disk].set_owner(sector, None);
        }
        for (at, spot) in spots.iter().enumerate() {
            if let Some((disk, sector)) = *spot {
                let owner = Owner { volume: self.index, sector: at as u64 };
                state.disks[disk].set_owner(sector, Some(owner));
            }
        }
        state.oracle.place_volume(self.index, spots.clone());
        drop(state);
        self.spots = spots;
    }

    /// Like `place`, and what was nobody's is made fresh.
    pub(crate) fn move_in(&mut self, spots: Vec<Spot>) {
        {
            let mut state = self.director.stage.get();
            for (at, &spot) in spots.iter().enumerate() {
                let kept = self.spots.get(at).is_some_and(|old| *old == spot);
                if let (Some((disk, sector)), false) = (spot, kept) {
                    state.disks[disk].put(sector, &[0; SECTOR_LEN]);
                }
            }
        }
        self.place(spots);
    }

    /// A table is about to go live on a node: what it may do is legal from now on.
    pub(crate) fn expect_dress(
        &mut self,
        node: usize,
        dress: &Dress,
    ) -> Option<crate::oracle::WindowId> {
        let mut state = self.director.stage.get();
        if !dress.orderly || state.swarm.races {
            self.stack.nodes[node].orderly = false;
            state.oracle.forget_order(self.index);
        }
        dress.may_fail.then(|| state.oracle.open_window(Some(self.index)))
    }

    /// The table is live (or was not taken).
    pub(crate) fn dressed(
        &mut self,
        node: usize,
        dress: &Dress,
        window: Option<crate::oracle::WindowId>,
        done: bool,
    ) {
        let index = node;
        let mut state = self.director.stage.get();
        let node = &mut self.stack.nodes[node];
        let over = if done { std::mem::replace(&mut node.window, window) } else { window };
        if let Some(window) = over {
            state.oracle.close_window(window);
        }
        // Without an answer in favour the old table stands, and so might what it held.
        node.orderly = done && dress.orderly && !state.swarm.races;
        let odd = state.misfits_of(&dress.paths) != dress.misfits;
        node.odd_sizes = if done { odd } else { node.odd_sizes };
        drop(state);
        if done {
            self.note_paths(index, dress);
        }
    }

    /// Suspends the device of a node; the oracle hears of it.
    pub(crate) async fn suspend(&mut self, node: usize, options: SuspendOptions) -> Suspended {
        let name = self.stack.nodes[node].name.clone();
        self.forget_order_above(node);
        let window = self.open_flush_window(node, &options);
        let outcome = self.director.suspend(&name, options).await;
        self.close_flush_window(window);
        let races = self.director.stage.get().swarm.races;
        if outcome == Suspended::Yes && !races {
            if node == 0 {
                self.director.stage.get().oracle.suspended(self.index);
            }
            if self.director.once_in(4) {
                self.check_suspended(&name).await;
            }
        }
        outcome
    }

    /// Resumes the device of a node; the oracle hears of it.
    pub(crate) async fn resume(&mut self, node: usize, options: SuspendOptions) -> bool {
        let name = self.stack.nodes[node].name.clone();
        self.forget_order_above(node);
        if node == 0 {
            let orderly = self.stack.is_orderly();
            self.director.stage.get().oracle.resuming(self.index, orderly);
        }
        let window = self.open_flush_window(node, &options);
        let done = self.director.resume(&name, options).await;
        self.close_flush_window(window);
        done
    }

    /// A gate below holds some of the I/O and lets the rest pass: no order is promised across it.
    pub(crate) fn forget_order_above(&self, node: usize) {
        if node != 0 {
            self.director.stage.get().oracle.forget_order(self.index);
        }
    }

    async fn check_suspended(&self, name: &str) {
        if let Some(status) = self.director.status(name).await
            && !status.suspended
        {
            self.director.violate(format!("{name} is not suspended after a suspend"));
        }
        let answer = self.director.control.ask(Request::Gauges { device: key(name) }).await;
        if let Ok(Reply::Gauges(gauges)) = answer
            && gauges.in_flight != 0
        {
            self.director.violate(format!("{name} is suspended with {gauges:?}"));
        }
        let options = SuspendOptions::default();
        let request =
            Request::Suspend { device: key(name), options, ticket: self.director.ticket() };
        let answer = self.director.control.ask(request).await;
        self.director.expect("suspend of a suspended device", answer);
    }
}
