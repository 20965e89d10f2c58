//! The sizes a device may have, and what that means for requests near its end.
//!
//! A resize under way may be found done or not done after a crash; one that was reported done is
//! durable. A request may be refused if it reached beyond the end at any moment while it was open,
//! and must be if it did so all the time; everything else has to be served.
//!
//! Rules. Sizes are numbers of the oracle's sectors. What a shrink cuts off is a change of its own,
//! which the oracle has in its history; nothing here knows of contents.
//!
//! The tricky case is a resize that failed because the disk did: nobody knows which size it left,
//! so both stay possible, and the workload asks for no other in this life.

use std::collections::BTreeMap;
use udm_types::Status;

/// A request that is open.
#[derive(Clone, Copy, Debug)]
struct Reach {
    end: usize,
    /// The smallest and the largest size the device may have had since.
    least: usize,
    most: usize,
}

/// What sizes are possible.
#[derive(Debug)]
pub(crate) struct Sizes {
    /// The last one known for sure, and others that are possible.
    possible: Vec<usize>,
    is_changing: bool,
    open: BTreeMap<u64, Reach>,
}

impl Sizes {
    /// A device of this size.
    pub(crate) fn new(len: usize) -> Sizes {
        Sizes { possible: vec![len], is_changing: false, open: BTreeMap::new() }
    }

    /// The size, if there is no doubt.
    pub(crate) fn certain(&self) -> Option<usize> {
        match self.possible[..] {
            [len] => Some(len),
            _ => None,
        }
    }

    /// A resize is under way.
    pub(crate) fn is_changing(&self) -> bool {
        self.is_changing
    }

    /// A resize is submitted, perhaps to another logical size.
    pub(crate) fn ask(&mut self, len: Option<usize>) {
        self.is_changing = true;
        let Some(len) = len else { return };
        self.possible.push(len);
        for reach in self.open.values_mut() {
            (reach.least, reach.most) = (reach.least.min(len), reach.most.max(len));
        }
    }

    /// It has ended: well, or with everything as it was, or nobody knows.
    pub(crate) fn end(&mut self, is_done: Option<bool>) {
        self.is_changing = false;
        match is_done {
            Some(true) => {
                self.possible.drain(..self.possible.len() - 1);
            }
            Some(false) => self.possible.truncate(1),
            None => {}
        }
    }

    /// A request is submitted that ends at this sector.
    pub(crate) fn submit(&mut self, ticket: u64, end: usize) {
        let all = || self.possible.iter().copied();
        let (least, most) = (all().min().unwrap_or(0), all().max().unwrap_or(0));
        self.open.insert(ticket, Reach { end, least, most });
    }

    /// A request is done. True if it was refused, and may be.
    pub(crate) fn done(&mut self, ticket: u64, status: Status) -> Result<bool, String> {
        let Some(reach) = self.open.remove(&ticket) else { return Ok(false) };
        if status.is_ok() && reach.end > reach.most {
            return Err(format!("request {ticket} is served beyond the end: {reach:?}"));
        }
        Ok(status == Status::Invalid && reach.end > reach.least)
    }

    /// After a crash the device has a size, in bytes; says which, as sectors.
    pub(crate) fn judge(
        &self,
        found_bytes: u64,
        len_bytes: impl Fn(usize) -> u64,
    ) -> Result<usize, String> {
        let found = self.possible.iter().copied().find(|len| len_bytes(*len) == found_bytes);
        found.ok_or_else(|| {
            format!("the device has {found_bytes} bytes, but may have only {:?}", self.possible)
        })
    }

    /// What was found is the truth.
    pub(crate) fn rebase(&mut self, len: usize) {
        *self = Sizes::new(len);
    }
}

#[cfg(test)]
mod tests {
    use super::Sizes;
    use udm_types::Status;

    #[test]
    fn a_request_is_refused_if_it_reached_beyond_and_only_then() {
        let mut sizes = Sizes::new(10);
        sizes.submit(1, 8);
        sizes.submit(2, 12);
        sizes.submit(3, 8);
        assert_eq!(sizes.done(1, Status::Invalid), Ok(false), "nobody asked for less");
        assert!(sizes.done(2, Status::Ok).is_err(), "behind the end");
        sizes.ask(Some(6));
        assert_eq!(sizes.done(3, Status::Invalid), Ok(true));
        sizes.submit(4, 8);
        sizes.end(Some(true));
        assert_eq!(sizes.certain(), Some(6));
        assert_eq!(sizes.done(4, Status::Ok), Ok(false), "it came before the end of the resize");
    }

    #[test]
    fn a_crash_leaves_the_old_size_or_the_new_one() {
        let bytes = |len: usize| len as u64 * 512;
        let mut sizes = Sizes::new(10);
        sizes.ask(Some(6));
        assert_eq!((sizes.judge(5120, bytes), sizes.judge(3072, bytes)), (Ok(10), Ok(6)));
        sizes.end(Some(true));
        assert!(sizes.judge(5120, bytes).is_err(), "it was reported done");
        sizes.ask(Some(8));
        sizes.end(Some(false));
        assert!(sizes.judge(4096, bytes).is_err(), "it was refused");
        sizes.ask(Some(8));
        sizes.end(None);
        assert_eq!((sizes.certain(), sizes.judge(4096, bytes)), (None, Ok(8)));
    }
}
