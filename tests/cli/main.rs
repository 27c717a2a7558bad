//! Tests of the built binary: its complete output and its exit codes.
//!
//! Tests share nothing. Every master and agent listens on its own address and on a port that the
//! kernel chose. Every file is in a temporary directory. Every process ends with its test.

#![expect(clippy::unwrap_used, reason = "an unexpected result must fail the test")]

mod access;
mod authentication;
mod bundle;
mod check;
mod cluster;
mod completions;
mod config_errors;
mod connectivity;
mod demo;
mod doctor;
mod documentation;
mod export_import;
mod forget;
mod help;
mod ipam;
mod lifecycle;
mod log_reader;
mod login;
mod man;
mod output_files;
mod plan;
mod proxy_prefix;
mod secrets;
mod service_manager;
mod startup;
mod state;
mod state_file;
mod status;
mod support;
mod terminal;
mod untrusted_input;
