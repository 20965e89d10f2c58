//! The data of the options that have some: export names, information requests, context queries.
//!
//! Called by the handshake with the whole data of one option, whose length is already bounded.
//! Every parser answers `None` for anything malformed: a length that points past the end, bytes
//! left over, a string that is too long, not UTF-8 or holds a NUL. What `parse` returns is valid
//! throughout, so walking it later cannot fail.
//!
//! Nothing is copied: the results borrow from the received bytes.
//!
//! The tricky case is a count that claims more entries than the data can hold. Counts are never
//! used to reserve memory, only compared with what was really found.

use crate::nbd::wire::STRING_LEN_BYTES_MAX;

/// The data of INFO and GO.
pub(super) struct InfoRequest<'a> {
    /// The export's name; empty for the default export.
    pub(super) export: &'a str,
    items: &'a [u8],
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(super) struct MetaRequest<'a> {
    /// The export's name; empty for the default export.
    pub(super) export: &'a str,
    queries: &'a [u8],
}

impl<'a> InfoRequest<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Option<InfoRequest<'a>> {
        let (export, rest) = counted_string(body)?;
        let (count, items) = rest.split_first_chunk::<2>()?;
        let export = name(export)?;
        (items.len() == 2 * usize::from(u16::from_be_bytes(*count)))
            .then_some(InfoRequest { export, items })
    }

    /// True if the client asked for `item`.
    pub(super) fn wants(&self, item: u16) -> bool {
        self.items.chunks_exact(2).any(|bytes| *bytes == item.to_be_bytes())
    }
}

impl<'a> MetaRequest<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Option<MetaRequest<'a>> {
        let (export, rest) = counted_string(body)?;
        let (count, queries) = rest.split_first_chunk::<4>()?;
        let export = name(export)?;
        let mut found: u32 = 0;
        let mut left = queries;
        while !left.is_empty() {
            let (query, rest) = counted_string(left)?;
            name(query)?;
            found += 1;
            left = rest;
        }
        (found == u32::from_be_bytes(*count)).then_some(MetaRequest { export, queries })
    }

    /// The queries in order.
    pub(super) fn queries(&self) -> impl Iterator<Item = &'a str> {
        let mut left = self.queries;
        core::iter::from_fn(move || {
            let (query, rest) = counted_string(left)?;
            left = rest;
            name(query)
        })
    }
}

/// A string the protocol allows.
pub(super) fn name(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > STRING_LEN_BYTES_MAX || bytes.contains(&0) {
        return None;
    }
    str::from_utf8(bytes).ok()
}

/// The length of a name as the wire has it.
pub(super) fn len_u32(name: &str) -> u32 {
    u32::try_from(name.len()).expect("invariant: export names are short")
}

/// A 32-bit length, that many bytes, and what follows.
fn counted_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*len) as usize)
}

#[cfg(test)]
mod tests {
    use super::{InfoRequest, MetaRequest, name};

    #[test]
    fn an_info_request_is_exact_to_the_byte() {
        let good = b"\0\0\0\x03vol\0\x02\0\x01\0\x03";
        let request = InfoRequest::parse(good).expect("well formed");
        assert_eq!(request.export, "vol");
        assert!(request.wants(1) && request.wants(3) && !request.wants(2));
        for cut in 0..good.len() {
            assert!(InfoRequest::parse(&good[..cut]).is_none(), "cut at {cut}");
        }
        assert!(InfoRequest::parse(b"\0\0\0\x03vol\0\x01\0\x01\0\x03").is_none());
        assert!(InfoRequest::parse(b"\xff\xff\xff\xffvol\0\0").is_none());
        assert!(InfoRequest::parse(b"\0\0\0\x02\xff\xfe\0\0").is_none());
    }

    #[test]
    fn queries_are_exact_to_the_byte() {
        let good = b"\0\0\0\x01v\0\0\0\x02\0\0\0\x03x:y\0\0\0\0";
        let request = MetaRequest::parse(good).expect("well formed");
        assert_eq!(request.export, "v");
        assert_eq!(request.queries().collect::<Vec<_>>(), ["x:y", ""]);
        for cut in 0..good.len() {
            assert!(MetaRequest::parse(&good[..cut]).is_none(), "cut at {cut}");
        }
        assert!(MetaRequest::parse(b"\0\0\0\0\xff\xff\xff\xff").is_none());
        assert!(MetaRequest::parse(b"\0\0\0\0\0\0\0\x01\0\0\0\x01a\0").is_none());
    }

    #[test]
    fn strings_keep_the_protocols_limits() {
        let long = "n".repeat(4096);
        assert_eq!(name(long.as_bytes()), Some(long.as_str()));
        assert_eq!(name("n".repeat(4097).as_bytes()), None);
        assert_eq!(name(b"a\0b"), None);
        assert_eq!(name(b""), Some(""));
    }
}
