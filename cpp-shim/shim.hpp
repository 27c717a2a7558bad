// The C++ half of the module: what Rust calls. It takes no decisions: it carries bytes, strings and
// handles between libprocess and src/module, and lets no exception out.
//
// What of Mesos it may use is what compiles against every Mesos from 1.4 to 1.12.

#ifndef MESOS_OVERLAY_SHIM_HPP
#define MESOS_OVERLAY_SHIM_HPP

#include <cstdint>
#include <memory>
#include <string>

#include <process/future.hpp>
#include <process/http.hpp>
#include <process/pid.hpp>

#include "rust/cxx.h"

namespace mesos_overlay {

struct Answer;
class PartProcess;

// Who waits for the answer to an HTTP request, which it gets exactly once: without another one it
// gives itself one when it goes.
class Responder
{
public:
  explicit Responder(std::shared_ptr<process::Promise<process::http::Response>> promise);
  ~Responder();
  Responder(const Responder&) = delete;
  Responder& operator=(const Responder&) = delete;

  void respond(const Answer& answer);

private:
  std::shared_ptr<process::Promise<process::http::Response>> promise;
};

// What a part's libprocess process does for it. May be called on any thread, and never waits.
class Sender
{
public:
  explicit Sender(PartProcess* process) : process(process) {}

  // The address is an IPv4 one in host byte order.
  void send(
      rust::Str id,
      uint32_t ip,
      uint16_t port,
      rust::Str name,
      rust::Slice<const uint8_t> body) const;
  void link(rust::Str id, uint32_t ip, uint16_t port) const;

private:
  // Lives as long as the Mesos process.
  PartProcess* process;
};

// The log of Mesos. `severity` is that of glog: 0 for information, 1 for a warning, 2 for an error.
void write_log(int32_t severity, rust::Str file, uint32_t line, rust::Str text);

// How much of the verbose log (VLOG) is wanted now.
int32_t log_verbosity();

} // namespace mesos_overlay {

#endif // MESOS_OVERLAY_SHIM_HPP
