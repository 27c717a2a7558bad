//! Decodes the body of a request incrementally, chunked or with a known length.
//!
//! Decoded bytes are removed from the input immediately. The input therefore holds at most one
//! read, and no byte is examined twice. Memory grows with the received bytes and not with the
//! announced length.

use std::io::Read as _;

use bytes::{Buf as _, Bytes, BytesMut};

use super::head::{Framing, hex};
use crate::Rejection;

/// Longest line with the size of a chunk. No known client sends chunk extensions.
const CHUNK_LINE_LIMIT: usize = 1024;

/// Longest trailer section. Trailers are ignored: libprocess never sends any.
const TRAILERS_LIMIT: usize = 8 * 1024;

/// A body that is being decoded.
#[derive(Debug)]
pub(super) struct Body {
    bytes: Vec<u8>,
    /// Number of received bytes.
    length: usize,
    limits: BodyLimits,
    state: State,
}

/// Maximum length of a body, and whether its bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BodyLimits {
    /// Maximum length in bytes, compressed and uncompressed.
    pub(super) max: usize,
    /// Whether the bytes are stored. Otherwise the body is empty and uses no memory.
    pub(super) is_kept: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Remaining bytes of a body with a known length.
    Length(usize),
    /// The next line is the size of a chunk.
    ChunkSize,
    /// Remaining bytes of a chunk.
    Chunk(usize),
    /// The line end after a chunk follows.
    ChunkEnd,
    /// Trailers or the final empty line follow. The value counts the bytes of trailers so far.
    Trailers(usize),
    Done,
}

impl Body {
    /// Creates an empty body.
    ///
    /// # Errors
    /// If the announced length exceeds the limit.
    pub(super) const fn new(framing: Framing, limits: BodyLimits) -> Result<Self, Rejection> {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) if length > limits.max => {
                return Err(Rejection::BodyTooLarge(limits.max));
            }
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
        };
        Ok(Self { bytes: Vec::new(), length: 0, limits, state })
    }

    /// Removes the bytes of the body from `input`, and returns the body when it is complete. Bytes
    /// after the end of the body stay in `input`.
    pub(super) fn read(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, Rejection> {
        loop {
            match self.state {
                State::Done => return Ok(Some(Bytes::from(std::mem::take(&mut self.bytes)))),
                State::Length(rest) => match self.take(rest, input) {
                    0 => self.state = State::Done,
                    rest => {
                        self.state = State::Length(rest);
                        return Ok(None);
                    }
                },
                State::ChunkSize => {
                    let Some(line) = take_line(input, CHUNK_LINE_LIMIT)? else { return Ok(None) };
                    let size = chunk_size(&line)?;
                    let Some(size) = size.filter(|size| *size <= self.limits.max - self.length)
                    else {
                        return Err(Rejection::BodyTooLarge(self.limits.max));
                    };
                    self.state = if size == 0 { State::Trailers(0) } else { State::Chunk(size) };
                }
                State::Chunk(rest) => match self.take(rest, input) {
                    0 => self.state = State::ChunkEnd,
                    rest => {
                        self.state = State::Chunk(rest);
                        return Ok(None);
                    }
                },
                State::ChunkEnd => match take_line(input, 2)? {
                    None => return Ok(None),
                    Some(line) if line.is_empty() => self.state = State::ChunkSize,
                    Some(_) => return Err(Rejection::Malformed("a chunk is longer than its size")),
                },
                State::Trailers(read) => match take_line(input, TRAILERS_LIMIT - read)? {
                    None => return Ok(None),
                    Some(line) if line.is_empty() => self.state = State::Done,
                    Some(line) => self.state = State::Trailers(read + line.len() + 2),
                },
            }
        }
    }

    /// Drops the stored bytes and stores no further bytes.
    pub(super) fn discard(&mut self) {
        self.limits.is_kept = false;
        self.bytes = Vec::new();
    }

    /// Returns the allocated memory in bytes.
    pub(super) const fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Moves at most `rest` bytes out of `input`. Returns the number of missing bytes.
    fn take(&mut self, rest: usize, input: &mut BytesMut) -> usize {
        let count = rest.min(input.len());
        self.length += count;
        if self.limits.is_kept {
            if self.bytes.is_empty() {
                // Usually the whole body was received: allocate exactly its size.
                self.bytes.reserve_exact(count);
            }
            self.bytes.extend_from_slice(&input[..count]);
        }
        input.advance(count);
        rest - count
    }
}

/// Removes a line from `input`. Returns the line without its end.
fn take_line(input: &mut BytesMut, limit: usize) -> Result<Option<BytesMut>, Rejection> {
    let window = &input[..input.len().min(limit)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        return if input.len() >= limit {
            Err(Rejection::Malformed("a line of a chunked body is too long"))
        } else {
            Ok(None)
        };
    };
    // A lone line feed is not a line end: implementations that disagree on it would also disagree
    // on the end of the body.
    if end == 0 || window[end - 1] != b'\r' {
        return Err(Rejection::Malformed(
            "a line of a chunked body ends without a carriage return",
        ));
    }
    let mut line = input.split_to(end + 1);
    line.truncate(end - 1);
    Ok(Some(line))
}

/// Parses the size of a chunk. Returns `None` if the size overflows.
fn chunk_size(line: &[u8]) -> Result<Option<usize>, Rejection> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let is_ended = matches!(line.get(digits), None | Some(b';' | b' ' | b'\t'));
    if digits == 0 || !is_ended {
        return Err(Rejection::Malformed("the size of a chunk is no hexadecimal number"));
    }
    Ok(line[..digits].iter().try_fold(0_usize, |size, &digit| {
        size.checked_mul(16)?.checked_add(hex(digit).unwrap_or_default().into())
    }))
}

/// First allocation for uncompressed bytes.
const INFLATE_STEP: usize = 32 * 1024;

/// Decompresses gzip with a single member, which is all that libprocess writes. Empty members would
/// cost time without output. Before every allocation, `grow` gets the new size.
///
/// # Errors
/// If the data is not gzip, if the output exceeds `max` bytes, or if `grow` fails.
pub(super) fn inflate(
    body: &[u8],
    max: usize,
    mut grow: impl FnMut(usize) -> Result<(), Rejection>,
) -> Result<Bytes, Rejection> {
    let mut decoder = flate2::bufread::GzDecoder::new(body);
    let mut plain = Vec::new();
    loop {
        if plain.len() == plain.capacity() {
            let capacity = (plain.capacity() * 2).clamp(INFLATE_STEP, max.max(INFLATE_STEP) + 1);
            grow(capacity)?;
            plain.reserve_exact(capacity - plain.len());
        }
        let remaining = (plain.capacity() - plain.len()) as u64;
        let count = decoder
            .by_ref()
            .take(remaining)
            .read_to_end(&mut plain)
            .map_err(|_| Rejection::Malformed("the body is no gzip data"))?;
        if plain.len() > max {
            return Err(Rejection::BodyTooLarge(max));
        }
        if count == 0 {
            return match decoder.into_inner() {
                [] => Ok(plain.into()),
                _ => Err(Rejection::Malformed("there is data after the gzip stream")),
            };
        }
    }
}
