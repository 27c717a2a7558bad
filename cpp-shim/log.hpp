// The replicated log of Mesos, as the C++ module uses it.

#ifndef MESOS_OVERLAY_LOG_HPP
#define MESOS_OVERLAY_LOG_HPP

#include <cstdint>
#include <memory>
#include <string>

#include <mesos/log/log.hpp>

#include <mesos/state/log.hpp>
#include <mesos/state/state.hpp>

#include <process/future.hpp>

#include <stout/option.hpp>

#include "rust/cxx.h"

namespace mesos_overlay {

// Ends every wait for a log, and refuses further operations: Mesos is about to end. Waits for a log
// that is being opened, at most a second. After the return, no operation calls libprocess, which
// that would start again.
void close_log();

// One variable in one log. The functions block, so only a thread of the Rust half may call them.
// The log is never closed: closing waits for libprocess, which may no longer run.
class StateLog
{
public:
  StateLog(std::unique_ptr<mesos::log::Log> log, const char* name);
  StateLog(const StateLog&) = delete;
  StateLog& operator=(const StateLog&) = delete;

  // Becomes the only writer, and returns the value. Throws the reason of a failure.
  std::unique_ptr<std::string> fetch(uint64_t milliseconds);

  // Writes the value. Returns false if another process has become the writer. Throws if the result
  // of the write is unknown.
  bool store(rust::Slice<const uint8_t> value, uint64_t milliseconds);

private:
  void renew();

  std::unique_ptr<mesos::log::Log> log;
  std::unique_ptr<mesos::state::LogStorage> storage;
  std::unique_ptr<mesos::state::State> state;
  const char* name;
  Option<mesos::state::Variable> variable;
  // A fetch that timed out and may still succeed.
  Option<process::Future<mesos::state::Variable>> fetching;
};

// Opens the log in `directory`, unless Mesos is about to end. Its replicas find each other at `url`
// ("zk://…"). If `url` is empty, the log has one replica. Throws if the URL is invalid. Mesos itself
// ends the process if the directory is unusable.
std::unique_ptr<StateLog> open_log(
    rust::Str directory,
    uint32_t quorum,
    rust::Str url,
    uint64_t session_timeout_milliseconds);

} // namespace mesos_overlay {

#endif // MESOS_OVERLAY_LOG_HPP
