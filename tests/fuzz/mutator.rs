//! Derives new inputs from known ones: changes bytes, drops and repeats pieces, copies pieces of
//! other inputs, and inserts tokens of the decoded formats.

/// Longest input, in bytes.
pub(crate) const LENGTH_MAX: usize = 64 * 1024;

/// Tokens of the decoded formats.
const TOKENS: [&[u8]; 30] = [
    b"\r\n",
    b"\r\n\r\n",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Libprocess-From: a@1.2.3.4:5\r\n",
    b"POST /overlay-master/x HTTP/1.1\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff",
    b"18446744073709551615",
    b"-1",
    b"1e999",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\"subnet\":",
    b"\"prefix\":",
    b"\"overlays\":",
    b"\"vtep_subnet\":\"44.128.0.0/16\"",
    b"\"::/0\"",
    b"\"0.0.0.0/0\"",
    b"\\u0000",
    b"\xff\xff\xff\xff\x0f",
    b"\x0a\x00",
    b"\xf0\x9f\x92\xa9",
    b"null",
    b"%00",
];

/// Mutates `input` between one and sixteen times.
pub(crate) fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], random: &mut fastrand::Rng) {
    for _ in 0..1_usize << random.u8(0..5) {
        let at = random.usize(..=input.len());
        match random.u8(0..8) {
            0 => map_byte(input, at, |byte| byte ^ (1 << (byte.count_ones() % 8))),
            1 => {
                let byte = random.u8(..);
                map_byte(input, at, |_| byte);
            }
            2 => {
                let end = input.len().min(at + random.usize(1..16));
                input.drain(at..end);
            }
            3 => {
                let end = input.len().min(at + random.usize(1..64));
                let piece = input[at..end].to_vec();
                insert(input, at, &piece.repeat(random.usize(1..4)));
            }
            4 | 5 => insert(input, at, TOKENS[random.usize(..TOKENS.len())]),
            6 => insert(input, at, &[random.u8(..), random.u8(..)]),
            _ => {
                let other = &others[random.usize(..others.len())];
                let start = random.usize(..=other.len());
                let end = other.len().min(start + random.usize(1..256));
                insert(input, at, &other[start..end]);
            }
        }
    }
    input.truncate(LENGTH_MAX);
}

fn map_byte(input: &mut [u8], at: usize, with: impl Fn(u8) -> u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte = with(*byte);
    }
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    input.splice(at..at, piece.iter().copied());
}
