//! The body of a request: collects its bytes, chunked or not, as they come in.
//!
//! What was decoded is taken out of the input at once, so the input never holds more than one read,
//! and nothing is looked at twice however small the pieces are. Memory grows with what came, never
//! with what a peer says will come.

use std::io::Read as _;

use bytes::{Buf as _, Bytes, BytesMut};

use super::BODY_LIMIT;
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
    state: State,
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
    pub(super) const fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
        };
        Self { bytes: Vec::new(), state }
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
                    if size > BODY_LIMIT - self.bytes.len() {
                        return Err(Refusal::BodyTooLarge(BODY_LIMIT));
                    }
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

    /// How much memory the body holds.
    pub(super) const fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Moves at most `rest` bytes out of `input`; says how many are still to come.
    fn take(&mut self, rest: usize, input: &mut BytesMut) -> usize {
        let count = rest.min(input.len());
        if self.bytes.is_empty() {
            // Nearly always all of a body is there: then it gets memory of just its size.
            self.bytes.reserve_exact(count);
        }
        self.bytes.extend_from_slice(&input[..count]);
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

fn chunk_size(line: &[u8]) -> Result<usize, Refusal> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let is_ended = matches!(line.get(digits), None | Some(b';' | b' ' | b'\t'));
    if digits == 0 || !is_ended {
        return Err(Refusal::Malformed("the size of a chunk is no hexadecimal number"));
    }
    line[..digits].iter().try_fold(0_usize, |size, &digit| {
        let size = size << 4 | usize::from(hex(digit).unwrap_or_default());
        // Checked at every digit, so it cannot overflow.
        if size > BODY_LIMIT { Err(Refusal::BodyTooLarge(BODY_LIMIT)) } else { Ok(size) }
    })
}

/// Undoes gzip, up to the limit of a body.
pub(super) fn inflate(body: &[u8]) -> Result<Bytes, Refusal> {
    let mut plain = Vec::new();
    let limit = BODY_LIMIT as u64 + 1;
    flate2::read::MultiGzDecoder::new(body)
        .take(limit)
        .read_to_end(&mut plain)
        .map_err(|_| Refusal::Malformed("the body is no gzip data"))?;
    if plain.len() > BODY_LIMIT {
        return Err(Refusal::BodyTooLarge(BODY_LIMIT));
    }
    Ok(plain.into())
}
