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

// One variable in one log. Its functions wait: they are for a thread of Rust's own. It is never
// closed, since that would wait for libprocess, which may be gone.
class StateLog
{
public:
  StateLog(std::unique_ptr<mesos::log::Log> log, const char* name);
  StateLog(const StateLog&) = delete;
  StateLog& operator=(const StateLog&) = delete;

  // Becomes the only writer, and returns the value. Throws why that failed.
  std::unique_ptr<std::string> fetch(uint64_t milliseconds);

  // Writes the value. False: somebody else has become the writer. Throws why it is not known
  // whether it was written.
  bool store(rust::Slice<const uint8_t> value, uint64_t milliseconds);

private:
  void renew();

  std::unique_ptr<mesos::log::Log> log;
  std::unique_ptr<mesos::state::LogStorage> storage;
  std::unique_ptr<mesos::state::State> state;
  const char* name;
  Option<mesos::state::Variable> variable;
  // One that was late: it may still succeed.
  Option<process::Future<mesos::state::Variable>> fetching;
};

// Opens the log in `directory`. Its replicas find each other at `url` ("zk://…"), or are this one
// alone if that is empty. Throws what is wrong with the URL. Mesos itself ends the process if the
// directory cannot be used.
std::unique_ptr<StateLog> open_log(
    rust::Str directory,
    uint32_t quorum,
    rust::Str url,
    uint64_t session_timeout_milliseconds);

} // namespace mesos_overlay {

#endif // MESOS_OVERLAY_LOG_HPP
