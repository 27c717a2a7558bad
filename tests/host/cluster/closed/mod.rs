//! Closed overlays: containers send from their own addresses only and reach no control ports, hosts
//! outside of the overlays reach published ports only, and permitted traffic passes as before.

mod attacks;
mod failures;
mod ingress;
mod lab;
mod matrix;
mod packets;
mod ports;
mod probe;
