//! Small integer names for the things a lane holds.
//!
//! They index dense vectors, so that the I/O path never hashes or searches. An id is reused only
//! after every lane has let go of its former owner.

/// One lane: one thread, one executor, one driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u16);

/// One mapped device; the same number on every lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

/// One lower device (file, memory, null, ...); the same number on every lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LowerId(pub u32);

/// One actor (a front end's connection, a load generator) on *its* lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActorId(pub u32);

impl LaneId {
    /// The number as a vector index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

macro_rules! index32 {
    ($($name:ident),*) => {$(
        impl $name {
            /// The number as a vector index.
            #[inline]
            pub fn index(self) -> usize {
                // A 32-bit id always fits: udm needs a 64-bit address space.
                self.0 as usize
            }
        }
    )*};
}
index32!(DeviceId, LowerId, ActorId);

impl DeviceId {
    /// The lane of whatever a device has only once, of `lane_count` lanes: devices are spread over
    /// them by their numbers.
    #[inline]
    pub fn home_lane(self, lane_count: usize) -> LaneId {
        // Fits: there are no more lanes than `LaneId` can name.
        LaneId((self.index() % lane_count.max(1)) as u16)
    }
}
