//! Target specs: the lines of a table as a load carries them and a status brings them back.
//!
//! A spec is 40 bytes (`start`, `length`, `status`, `next`, 16 bytes of type) and a string with its
//! NUL. Loads are read here with the kernel's checks in the kernel's order; what is read is what
//! the table builder takes, without a detour over text: a `#`, a `;` or a newline in the parameters
//! stays what it is.
//!
//! The tricky case is `next`: in a load it counts from its own spec and the last one's is not
//! looked at; in a status it counts from the *first* spec, and the last one has one, too.

use super::Refused;
use super::header::until_nul;
use super::layout::HEADER_LEN_BYTES;
use rustix::io::Errno;
use udm_core::lifecycle::StatusLine;
use udm_core::table::{TARGETS_MAX, TableLine, split_words};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Spec {
    begin_sector: u64,
    len_sectors: u64,
    status: i32,
    next: u32,
    target: [u8; 16],
}

const SPEC_LEN_BYTES: usize = size_of::<Spec>();
/// Specs and results stand at multiples of this.
pub(super) const ALIGN_BYTES: usize = 8;

/// Reads the specs of a load. `call` is the whole call, header included.
pub(super) fn read(call: &[u8], data_start: u32, count: u32) -> Result<Vec<TableLine>, Refused> {
    let count = count as usize;
    if count == 0 {
        return Err(Refused::invalid("a table has at least one target"));
    }
    if count > TARGETS_MAX {
        let why = format!("{count} targets, the limit is {TARGETS_MAX}");
        return Err(Refused::new(Errno::OVERFLOW, why));
    }
    let mut lines = Vec::new();
    let (mut at, mut next, mut next_min) = (0, data_start as usize, HEADER_LEN_BYTES);
    for number in 1..=count {
        let wrong = |what: &str| Refused::invalid(&format!("target spec {number}: {what}"));
        if next < next_min {
            return Err(wrong("it overlaps what is before it"));
        }
        let left = call.len() - at;
        if left.saturating_sub(SPEC_LEN_BYTES) <= next {
            return Err(wrong("it reaches beyond the end of the call"));
        }
        if !next.is_multiple_of(ALIGN_BYTES) {
            return Err(wrong("it is not 8-byte aligned"));
        }
        at += next;
        let (spec, rest) = Spec::read_from_prefix(&call[at..])
            .map_err(|_| wrong("it reaches beyond the end of the call"))?;
        let text = until_nul(rest);
        if text.len() == rest.len() {
            return Err(wrong("its parameters do not end"));
        }
        lines.push(line_of(&spec, text, number).ok_or_else(|| wrong("it is not UTF-8"))?);
        next_min = SPEC_LEN_BYTES + text.len() + 1;
        next = spec.next as usize;
    }
    Ok(lines)
}

fn line_of(spec: &Spec, text: &[u8], number: usize) -> Option<TableLine> {
    Some(TableLine {
        line: u32::try_from(number).unwrap_or(u32::MAX),
        begin_sector: spec.begin_sector,
        len_sectors: spec.len_sectors,
        // A type of 16 bytes without a NUL is longer than any there is, and is not found.
        target: String::from_utf8(until_nul(&spec.target).to_vec()).ok()?,
        args: split_words(std::str::from_utf8(text).ok()?),
    })
}

/// Lines as a result.
pub(super) struct Written {
    /// The bytes from the start of the result area.
    pub(super) bytes: Vec<u8>,
    /// How many of them are valid: the end of the last whole string.
    pub(super) valid_len_bytes: usize,
    /// Not all of them had room.
    pub(super) full: bool,
}

/// Writes lines into `capacity` bytes.
pub(super) fn write(lines: &[StatusLine], capacity: usize) -> Written {
    let mut written = Written { bytes: Vec::new(), valid_len_bytes: 0, full: true };
    for line in lines {
        let begin = written.bytes.len();
        if capacity - begin <= SPEC_LEN_BYTES {
            return written;
        }
        let room = capacity - begin - SPEC_LEN_BYTES;
        let len = line.args.len() + 1;
        // A string that fills the rest to the last byte cannot be told from one cut off.
        if len >= room {
            return written;
        }
        let end = begin + SPEC_LEN_BYTES + len;
        let next = end.next_multiple_of(ALIGN_BYTES);
        let mut spec = Spec {
            begin_sector: line.begin_sector,
            len_sectors: line.len_sectors,
            status: 0,
            next: if next > capacity { 0 } else { u32::try_from(next).unwrap_or(u32::MAX) },
            target: [0; 16],
        };
        let name = line.target.as_bytes();
        let name = &name[..name.len().min(spec.target.len() - 1)];
        spec.target[..name.len()].copy_from_slice(name);
        written.bytes.extend_from_slice(spec.as_bytes());
        written.bytes.extend_from_slice(line.args.as_bytes());
        written.bytes.push(0);
        written.valid_len_bytes = end;
        if next > capacity {
            return written;
        }
        written.bytes.resize(next, 0);
    }
    written.full = false;
    written
}

#[cfg(test)]
mod tests {
    use super::{SPEC_LEN_BYTES, read, write};
    use crate::ioctl::layout::HEADER_LEN_BYTES;
    use rustix::io::Errno;
    use udm_core::lifecycle::StatusLine;

    /// A call with specs of these `(next, parameters)`.
    fn call(specs: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN_BYTES];
        for (number, (next, text)) in specs.iter().enumerate() {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend_from_slice(&(number as u64 * 8).to_ne_bytes());
            bytes.extend_from_slice(&8_u64.to_ne_bytes());
            bytes.extend_from_slice(&0_i32.to_ne_bytes());
            bytes.extend_from_slice(&next.to_ne_bytes());
            bytes.extend_from_slice(b"linear\0\0\0\0\0\0\0\0\0\0");
            bytes.extend_from_slice(text);
        }
        bytes
    }

    fn errno(bytes: &[u8], start: u32, count: u32) -> Errno {
        read(bytes, start, count).expect_err("refused").errno
    }

    #[test]
    fn parameters_come_through_as_they_are() {
        let bytes = call(&[(56, b"a # ; \\ b\n\0"), (0, b"\0")]);
        let lines = read(&bytes, 312, 2).expect("good");
        assert_eq!(lines[0].args, ["a", "#", ";", " b"]);
        assert_eq!((lines[1].begin_sector, lines[1].len_sectors, lines[1].line), (8, 8, 2));
        assert!(lines[1].args.is_empty());
    }

    #[test]
    fn every_violation_is_refused() {
        let good = call(&[(48, b"x\0"), (0, b"y\0")]);
        assert!(read(&good, 312, 2).is_ok());
        assert_eq!(errno(&good, 312, 0), Errno::INVAL);
        assert_eq!(errno(&good, 312, (1 << 20) + 1), Errno::OVERFLOW);
        for start in [0, 305, 311, 313, 316, 1 << 20, u32::MAX] {
            assert_eq!(errno(&good, start, 2), Errno::INVAL, "start {start}");
        }
        for next in [0, 8, 40, 41, 44, 49, 56, 1 << 20, u32::MAX] {
            assert_eq!(errno(&call(&[(next, b"x\0"), (0, b"y\0")]), 312, 2), Errno::INVAL);
        }
        assert_eq!(errno(&call(&[(0, b"not ended")]), 312, 1), Errno::INVAL);
        assert_eq!(errno(&call(&[(0, b"")]), 312, 1), Errno::INVAL);
        assert_eq!(errno(&call(&[(0, b"\xff\0")]), 312, 1), Errno::INVAL);
        // `next` of the last one is not used.
        assert!(read(&call(&[(u32::MAX, b"x\0")]), 312, 1).is_ok());
    }

    fn lines() -> [StatusLine; 2] {
        let line = |begin_sector, args: &str| StatusLine {
            begin_sector,
            len_sectors: 8,
            target: "linear".into(),
            args: args.into(),
        };
        [line(0, "1:0 0"), line(8, "1:0 8")]
    }

    #[test]
    fn next_is_cumulative_and_the_last_one_has_one() {
        let written = write(&lines(), 4096);
        assert!(!written.full);
        // 40 + "1:0 0" + NUL = 46, aligned to 48.
        assert_eq!(written.bytes[20..24], 48_u32.to_ne_bytes());
        assert_eq!(written.bytes[68..72], 96_u32.to_ne_bytes());
        assert_eq!(written.valid_len_bytes, 94);
        assert_eq!(&written.bytes[40..46], b"1:0 0\0");
    }

    #[test]
    fn what_does_not_fit_is_told_and_an_exact_fit_does_not_fit() {
        for (capacity, valid) in [
            (0, 0),
            (SPEC_LEN_BYTES, 0),
            (SPEC_LEN_BYTES + 6, 0),
            // Fits, but its aligned end does not: the string is valid and the buffer full.
            (SPEC_LEN_BYTES + 7, 46),
            (48, 46),
            (48 + SPEC_LEN_BYTES, 46),
            (48 + SPEC_LEN_BYTES + 6, 46),
            (48 + SPEC_LEN_BYTES + 7, 94),
        ] {
            let written = write(&lines(), capacity);
            assert!(written.full, "capacity {capacity}");
            assert_eq!(written.valid_len_bytes, valid, "capacity {capacity}");
        }
        assert!(!write(&lines(), 96).full);
        assert!(!write(&[], 0).full);
    }
}
