// The functions of the C++ half that Rust calls. The C++ half makes no decisions: it passes bytes,
// strings and handles between libprocess and src/module. No exception propagates into libprocess.
//
// The C++ half uses only interfaces that every Mesos from 1.4 to 1.12 has.

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

struct HttpResponse;
class OverlayProcess;

// The pending response of an HTTP request, which is sent exactly once. If Rust drops the responder
// without a response, the destructor sends 503.
class Responder
{
public:
  explicit Responder(std::shared_ptr<process::Promise<process::http::Response>> promise);
  ~Responder();
  Responder(const Responder&) = delete;
  Responder& operator=(const Responder&) = delete;

  void respond(const HttpResponse& answer);

private:
  std::shared_ptr<process::Promise<process::http::Response>> promise;
};

// Sends through the libprocess process of a module. Any thread may call these functions, which
// never block.
class Sender
{
public:
  explicit Sender(OverlayProcess* process) : process(process) {}

  // `ip` is an IPv4 address in host byte order.
  void send(
      rust::Str id,
      uint32_t ip,
      uint16_t port,
      rust::Str name,
      rust::Slice<const uint8_t> body) const;
  void link(rust::Str id, uint32_t ip, uint16_t port) const;

private:
  // Lives as long as the Mesos process.
  OverlayProcess* process;
};

// Writes to the log of Mesos. `severity` is that of glog: 0 information, 1 warning, 2 error.
void write_log(int32_t severity, rust::Str file, uint32_t line, rust::Str text);

// Returns the current level of the verbose log (VLOG).
int32_t log_verbosity();

} // namespace mesos_overlay {

#endif // MESOS_OVERLAY_SHIM_HPP
