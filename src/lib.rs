//! Overlay networks for Apache Mesos: a master that owns the address plan, an agent that makes the
//! container networks, and everything around them. This page is the map.
//!
//! ```text
//!      cli: one file for each subcommand      module: the guest of a Mesos process
//!                                   │ start
//!                                   ▼
//!            runtime: feeds the machines, does what they want done
//!            │ events                                   │ commands
//!            ▼                                          ▼
//!   ┌──────────────────────────────┐    ┌──────────────────────────────┐
//!   │ pure: no IO, no clock        │    │ adapters: one for each thing │
//!   │                              │    │ that we own or talk to       │
//!   │ master            agent      │    │                              │
//!   │ http, config      ipam       │    │ store         transport      │
//!   │ wire                         │    │ detector      cni, docker    │
//!   │ protocol, addr, clock,       │    │ dataplane     firewall, host │
//!   │ machine, metrics, mutation,  │    │ logging; what some have in   │
//!   │ tunnel, words, escape,       │    │ common: zookeeper, program,  │
//!   │ limits                       │    │ warnings                     │
//!   └──────────────────────────────┘    └──────────────────────────────┘
//! ```
//!
//! Pure rooms use pure rooms only, so that all that is decided is decided by functions of their
//! arguments: a test, a simulator, this program or a Mesos process can run the same machines.
//! Adapters use pure rooms and never each other, but for the session with ZooKeeper that two of
//! them need; `runtime` uses all of them; nobody uses `cli` or `module`.
//! `tests/tidy.rs` checks it. One thing crosses the line: the master speaks of its state in the
//! words of the store, which are plain data.
//!
//! # Reading order
//!
//! Where to start: [`master::Event`] and [`master::Command`], which say all that a master can hear
//! and do; then [`master::Master`]; then what runs it, [`runtime`]. The agent has the same shape,
//! [`machine::Machine`].
//! `docs/architecture.md` follows one registration from end to end.
//!
//! What is said, and of what:
//!
//! - [`addr`]: subnets, names, MACs, MTUs: values that cannot be invalid
//! - [`clock`]: time as an argument, and waits that grow
//! - [`escape`]: texts of others, safe to show: invisible characters escaped, length bounded
//! - [`machine`]: the shape that master and agent have in common
//! - [`metrics`]: the numbers by which operators watch a machine, for Mesos and Prometheus
//! - [`mutation`]: deliberate defects, in builds that show that the simulator notices them
//! - [`protocol`]: the network, an agent's share of it, its record, the messages
//! - [`tunnel`]: what packets between agents need: our VTEPs, the overlays' space, the peers
//! - [`words`]: what sentences of several rooms have in common
//! - [`config`]: JSON text or module parameters to checked configuration, or every problem with its
//!   place and remedy
//!
//! What is decided:
//!
//! - [`limits`]: what peers can make a program hold and do, and the keys that bound it
//! - [`ipam`]: pools of subnets and VTEP addresses: which one is next
//! - [`master`]: who gets what, what has to be stored first, what the agents report
//! - [`agent`]: when to register, which networks to make and to try again, what to report
//! - [`wire`]: protobuf bytes and the JSON of Mesos; no other room knows a protobuf type
//! - [`http`]: from a request to a question for a machine, from its reply to a response
//!
//! What is done:
//!
//! - [`zookeeper`]: a session with ZooKeeper, for the store and the detector
//! - [`program`]: running another program to its end, or to ours
//! - [`warnings`]: standing warnings of adapters, which health shows
//! - [`store`]: keeps the master's state: in a file, in ZooKeeper, or in memory
//! - [`transport`]: messages and HTTP over TCP, as libprocess speaks them
//! - [`detector`]: where the master is, and which of several masters leads
//! - [`cni`]: the network of the MesosContainerizer: configuration files that Mesos reads
//! - [`docker`]: the network of the DockerContainerizer, made and compared through `docker`
//! - [`dataplane`]: the VXLAN device, neighbours, forwarding entries and routes in the kernel
//! - [`firewall`]: masquerade, VXLAN from known agents only, forwarding, isolation
//! - [`logging`]: the limits of the log: rate for each call site and in total, length, escapes
//! - [`host`]: the host's settings that forwarding needs, and what they were before
//! - [`runtime`]: the loop, the queue of events, and what is held back until it is stored
//! - [`cli`]: the program's face
//! - [`module`]: the two Mesos modules; their C++ half is `cpp-shim/`

pub mod addr;
pub mod agent;
pub mod cli;
pub mod clock;
pub mod cni;
pub mod config;
pub mod dataplane;
pub mod detector;
pub mod docker;
pub mod escape;
pub mod firewall;
pub mod host;
pub mod http;
pub mod ipam;
pub mod limits;
pub mod logging;
pub mod machine;
pub mod master;
pub mod metrics;
pub mod module;
pub mod mutation;
pub mod program;
pub mod protocol;
pub mod runtime;
pub mod store;
pub mod transport;
pub mod tunnel;
pub mod warnings;
pub mod wire;
pub mod words;
pub mod zookeeper;
