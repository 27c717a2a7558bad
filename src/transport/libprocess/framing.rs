//! The body of a request: collects its bytes, chunked or not, as they come in.
//!
//! What was decoded is taken out of the input at once, so the input never holds more than one read,
//! and nothing is looked at twice however small the pieces are. Memory grows with what came, never
//! with what a peer says will come.

use std::io::Read as _;

use bytes::{Buf as _, Bytes, BytesMut};

use super::head::{Framing, hex};
use crate::transport::Refusal;

/// Longest line with the size of a chunk. Nobody that we know sends extensions there.
const CHUNK_LINE_LIMIT: usize = 1024;

/// All trailers together. They are read over: libprocess never sends any.
const TRAILERS_LIMIT: usize = 8 * 1024;

/// A body that is being read.
#[derive(Debug)]
pub(super) struct Body {
    bytes: Vec<u8>,
    /// How much of it came so far.
    length: usize,
    limits: BodyLimits,
    state: State,
}

/// How long a body may be, and whether it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BodyLimits {
    /// Longest body, in bytes, as sent and inflated.
    pub(super) max: usize,
    /// Whether its bytes are kept. If not, the body ends up empty, and costs no memory.
    pub(super) is_kept: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// This many bytes of a body of known length are still to come.
    Length(usize),
    /// The line with the size of the next chunk comes.
    ChunkSize,
    /// This many bytes of a chunk are still to come.
    Chunk(usize),
    /// The line end behind a chunk comes.
    ChunkEnd,
    /// Trailers or the empty line behind the last chunk come; this many bytes of them were read.
    Trailers(usize),
    Done,
}

impl Body {
    /// A body of which nothing has been read.
    ///
    /// # Errors
    /// When its sender says that it is too long.
    pub(super) const fn new(framing: Framing, limits: BodyLimits) -> Result<Self, Refusal> {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) if length > limits.max => {
                return Err(Refusal::BodyTooLarge(limits.max));
            }
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
        };
        Ok(Self { bytes: Vec::new(), length: 0, limits, state })
    }

    /// Takes what belongs to the body out of `input`, and gives the body once it is complete. Not a
    /// byte behind the body's end is taken.
    pub(super) fn read(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, Refusal> {
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
                        return Err(Refusal::BodyTooLarge(self.limits.max));
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
                    Some(_) => return Err(Refusal::Malformed("a chunk is longer than its size")),
                },
                State::Trailers(read) => match take_line(input, TRAILERS_LIMIT - read)? {
                    None => return Ok(None),
                    Some(line) if line.is_empty() => self.state = State::Done,
                    Some(line) => self.state = State::Trailers(read + line.len() + 2),
                },
            }
        }
    }

    /// Drops what was kept, and keeps nothing from now on.
    pub(super) fn discard(&mut self) {
        self.limits.is_kept = false;
        self.bytes = Vec::new();
    }

    /// How much memory the body holds.
    pub(super) const fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Moves at most `rest` bytes out of `input`; says how many are still to come.
    fn take(&mut self, rest: usize, input: &mut BytesMut) -> usize {
        let count = rest.min(input.len());
        self.length += count;
        if self.limits.is_kept {
            if self.bytes.is_empty() {
                // Nearly always all of a body is there: then it gets memory of just its size.
                self.bytes.reserve_exact(count);
            }
            self.bytes.extend_from_slice(&input[..count]);
        }
        input.advance(count);
        rest - count
    }
}

/// Takes a line and its end out of `input`; gives it without the end.
fn take_line(input: &mut BytesMut, limit: usize) -> Result<Option<BytesMut>, Refusal> {
    let window = &input[..input.len().min(limit)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        return if input.len() >= limit {
            Err(Refusal::Malformed("a line of a chunked body is too long"))
        } else {
            Ok(None)
        };
    };
    // A lone line feed is no line end here: readers that differ on it disagree on where the body
    // ends.
    if end == 0 || window[end - 1] != b'\r' {
        return Err(Refusal::Malformed("a line of a chunked body ends without a carriage return"));
    }
    let mut line = input.split_to(end + 1);
    line.truncate(end - 1);
    Ok(Some(line))
}

/// The size of a chunk; `None` if it is larger than any body.
fn chunk_size(line: &[u8]) -> Result<Option<usize>, Refusal> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let is_ended = matches!(line.get(digits), None | Some(b';' | b' ' | b'\t'));
    if digits == 0 || !is_ended {
        return Err(Refusal::Malformed("the size of a chunk is no hexadecimal number"));
    }
    Ok(line[..digits].iter().try_fold(0_usize, |size, &digit| {
        size.checked_mul(16)?.checked_add(hex(digit).unwrap_or_default().into())
    }))
}

/// Bytes that are inflated at a time.
const INFLATE_STEP: usize = 32 * 1024;

/// Undoes gzip of one member, as libprocess writes it: a thousand empty members would take time for
/// nothing. `grow` is told how much memory it takes before it takes it.
///
/// # Errors
/// When the body is no gzip, when it is longer than `max` bytes inflated, or when `grow` refuses.
pub(super) fn inflate(
    body: &[u8],
    max: usize,
    mut grow: impl FnMut(usize) -> Result<(), Refusal>,
) -> Result<Bytes, Refusal> {
    let mut decoder = flate2::bufread::GzDecoder::new(body);
    let mut plain = Vec::new();
    loop {
        if plain.len() == plain.capacity() {
            let capacity = (plain.capacity() * 2).clamp(INFLATE_STEP, max.max(INFLATE_STEP) + 1);
            grow(capacity)?;
            plain.reserve_exact(capacity - plain.len());
        }
        let room = (plain.capacity() - plain.len()) as u64;
        let count = decoder
            .by_ref()
            .take(room)
            .read_to_end(&mut plain)
            .map_err(|_| Refusal::Malformed("the body is no gzip data"))?;
        if plain.len() > max {
            return Err(Refusal::BodyTooLarge(max));
        }
        if count == 0 {
            return match decoder.into_inner() {
                [] => Ok(plain.into()),
                _ => Err(Refusal::Malformed("there is more behind the gzip data")),
            };
        }
    }
}
