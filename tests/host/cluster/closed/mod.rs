//! Closed overlays: containers cannot pose as hosts, strangers do not get in, and everything that
//! worked without the rules still works.

mod failures;
mod ingress;
mod lab;
mod matrix;
mod packets;
mod ports;
mod probe;
