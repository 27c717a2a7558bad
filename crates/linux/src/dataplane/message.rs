//! Netlink messages as bytes: writes batches of requests, and reads answers. The lengths in
//! received messages are never trusted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::uapi::{AF_INET, AF_INET6, NLA_F_NESTED, NLA_TYPE_MASK, NLMSG_HEADER};

/// Request messages that are sent together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// The offset of each message.
    starts: Vec<usize>,
}

impl Batch {
    /// Begins a message with the `header` that belongs to its `kind`. Attributes follow.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, header: &[u8]) {
        self.starts.push(self.bytes.len());
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend(header);
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(crate) fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }

    /// Adds an attribute that contains the attributes that `write` adds.
    pub(crate) fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NLA_F_NESTED).to_ne_bytes());
        write(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Adds a header inside of a nested attribute. Attributes follow.
    pub(crate) fn header(&mut self, header: &[u8]) {
        self.bytes.extend(header);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) const fn count(&self) -> usize {
        self.starts.len()
    }

    pub(crate) const fn length(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
    }

    /// Completes the batch and returns its bytes. The sequence numbers start at `first`. The last
    /// message gets `last_flags` in addition to its own flags.
    pub(crate) fn finish(&mut self, first: u32, last_flags: u16) -> &[u8] {
        let end = self.bytes.len();
        for (index, &start) in self.starts.iter().enumerate() {
            let next = self.starts.get(index + 1).copied().unwrap_or(end);
            let length = u32::try_from(next - start).unwrap_or(u32::MAX);
            let sequence = first.wrapping_add(u32::try_from(index).unwrap_or(u32::MAX));
            self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
            self.bytes[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
            if next == end {
                let flags = u16::from_ne_bytes([self.bytes[start + 6], self.bytes[start + 7]]);
                let flags = (flags | last_flags).to_ne_bytes();
                self.bytes[start + 6..start + 8].copy_from_slice(&flags);
            }
        }
        &self.bytes
    }
}

/// A received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Port of the socket whose request caused the message. 0 for the kernel itself.
    pub(crate) port: u32,
    /// The bytes after the header.
    pub(crate) body: &'a [u8],
}

/// Returns the messages in a received datagram. A truncated message ends the iteration.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let body = bytes.get(NLMSG_HEADER..length)?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            port: u32_at(bytes, 12)?,
            body,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Returns the attributes of a body, starting at byte `from`.
pub(crate) fn attributes(body: &[u8], from: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(from..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let attribute = (u16_at(rest, 2)? & NLA_TYPE_MASK, rest.get(4..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Parses an address. The length of the value determines the family.
pub(crate) fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into())
}

/// Parses a zero-terminated text.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

pub(crate) const fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_batch_can_be_read() {
        let mut batch = Batch::default();
        batch.begin(24, 1, &[7; 12]);
        batch.text(3, "abc");
        batch.nested(18, |batch| batch.attribute(1, &[1, 2, 3]));
        batch.begin(25, 1, &[8; 12]);
        batch.address(1, "10.0.0.1".parse().unwrap());
        let bytes = batch.finish(7, 4).to_vec();
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].kind, read[0].flags, read[0].sequence), (24, 1, 7));
        assert_eq!((read[1].kind, read[1].flags, read[1].sequence), (25, 5, 8));
        let found: Vec<_> = attributes(read[0].body, 12).collect();
        assert_eq!(text(found[0].1), "abc");
        assert_eq!(found[1].0, 18);
        assert_eq!(attributes(found[1].1, 0).collect::<Vec<_>>(), [(1, &[1, 2, 3][..])]);
        let (_, value) = attributes(read[1].body, 12).next().unwrap();
        assert_eq!(address(value), Some("10.0.0.1".parse().unwrap()));
    }

    proptest::proptest! {
        #[test]
        fn parser_accepts_arbitrary_bytes(bytes: Vec<u8>) {
            for message in messages(&bytes) {
                attributes(message.body, 12).for_each(|(_, value)| drop(text(value)));
            }
            attributes(&bytes, 0).for_each(drop);
        }
    }

    #[test]
    fn message_of_length_zero_ends_iteration() {
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[0; 64], 0).count(), 0);
    }
}
