// The libprocess process of a module.

#ifndef MESOS_OVERLAY_PROCESS_HPP
#define MESOS_OVERLAY_PROCESS_HPP

#include <memory>
#include <string>

#include <mesos/mesos.hpp>

#include <mesos/master/detector.hpp>

#include <process/authenticator.hpp>
#include <process/future.hpp>
#include <process/http.hpp>
#include <process/pid.hpp>
#include <process/process.hpp>

#include <stout/option.hpp>

#include "mesos-overlay/src/module/bridge.rs.h"

namespace mesos_overlay {

// Logs the failure of an action in an exception handler, or just the reason if `action` is null.
// Never throws.
void log_failure(const char* action, const char* reason) noexcept;

// Stops the output of the modules to the log of Mesos when the process exits.
void close_log_at_exit();

// Passes messages and requests from libprocess to the Rust half of a module, and messages back. The
// object is never deleted: metrics and threads refer to it until the Mesos process ends.
class OverlayProcess : public process::Process<OverlayProcess>
{
public:
  // If `detector` is null, the module follows no election.
  OverlayProcess(
      rust::Box<Module> module,
      std::unique_ptr<mesos::master::detector::MasterDetector> detector);

  // The operations of `Sender`, executed in this process.
  void transmit(const process::UPID& to, const std::string& name, const std::string& body);
  void connect(const process::UPID& to);

protected:
  void initialize() override;
  void finalize() override;
  void exited(const process::UPID& pid) override;

private:
  void installMessages();
  void addRoutes();
  void addMetrics();
  void detect(const Option<mesos::MasterInfo>& previous);
  void restartDetector();
  void detected(const process::Future<Option<mesos::MasterInfo>>& leader);
  process::Future<process::http::Response> answer(
      const process::http::Request& request,
      const Option<process::http::authentication::Principal>& principal);

  // Results for calls that fail before they have a future of their own.
  const process::Future<process::http::Response> interrupted;
  const process::Future<double> noValue;
  const rust::Box<Module> module;
  std::unique_ptr<mesos::master::detector::MasterDetector> detector;
};

} // namespace mesos_overlay {

#endif // MESOS_OVERLAY_PROCESS_HPP
