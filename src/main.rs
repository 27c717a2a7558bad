//! skeleton

fn main() {}
