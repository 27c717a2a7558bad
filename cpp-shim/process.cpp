#include "process.hpp"

#include <chrono>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <utility>

#include <glog/logging.h>

#include <mesos/version.hpp>

#include <process/defer.hpp>
#include <process/delay.hpp>
#include <process/dispatch.hpp>
#include <process/metrics/metrics.hpp>

// Mesos 1.6 renamed the gauge whose value is pulled.
#if MESOS_MAJOR_VERSION_NUM == 1 && MESOS_MINOR_VERSION_NUM < 6
#include <process/metrics/gauge.hpp>
namespace mesos_overlay { using Gauge = process::metrics::Gauge; }
#else
#include <process/metrics/pull_gauge.hpp>
namespace mesos_overlay { using Gauge = process::metrics::PullGauge; }
#endif

#include <stout/duration.hpp>
#include <stout/ip.hpp>
#include <stout/stringify.hpp>

using process::Future;
using process::Promise;
using process::UPID;

using process::http::Request;
using process::http::Response;

using process::http::authentication::Principal;

using mesos::master::detector::MasterDetector;

namespace mesos_overlay {

namespace {

// Interval between a failed detection and the next attempt.
const Duration DETECTION_BACKOFF = Seconds(5);

// Longest wait at the exit of the process for a line that a thread writes to the log.
const std::chrono::milliseconds EXIT_WAIT(100);

// Runs a callback of libprocess or Rust. An exception that leaves the callback would end the Mesos
// process.
template <typename F>
void guarded(const char* action, F&& work) noexcept
{
  try {
    work();
  } catch (const std::exception& e) {
    log_failure(action, e.what());
  } catch (...) {
    log_failure(action, "unknown exception");
  }
}

// Protects the log of Mesos from the threads of the modules while the process exits: they run until
// the end, and glog's variables are destroyed before. Never destroyed.
struct LogGate
{
  std::timed_mutex lock;
  bool closed = false;
};

LogGate& logGate()
{
  static LogGate* gate = new LogGate();
  return *gate;
}

void closeLog()
{
  LogGate& gate = logGate();
  // If a thread hangs in a write, exit anyway: glog itself holds a lock then.
  if (gate.lock.try_lock_for(EXIT_WAIT)) {
    gate.closed = true;
    gate.lock.unlock();
  }
}

Response response(const HttpResponse& answer)
{
  const std::string body(reinterpret_cast<const char*>(answer.body.data()), answer.body.size());
  Response response(body, answer.status, std::string(answer.content_type));
  for (const Field& header : answer.headers) {
    response.headers[std::string(header.name)] = std::string(header.value);
  }
  return response;
}

Field field(const std::string& name, const std::string& value)
{
  // Input from the network may not be UTF-8, which Rust's strings require.
  return Field{rust::String::lossy(name), rust::String::lossy(value)};
}

rust::Slice<const uint8_t> bytes(const std::string& text)
{
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

UPID upid(rust::Str id, uint32_t ip, uint16_t port)
{
  return UPID(std::string(id), net::IP(ip), port);
}

#ifdef MESOS_OVERLAY_FAULTS
// In a build with fault injection, such a request fails as if no memory were left.
void throwInTest(const Request& request)
{
  if (request.headers.contains("X-Overlay-Test-No-Memory")) {
    throw std::bad_alloc();
  }
}
#else
void throwInTest(const Request&) {}
#endif

} // namespace {

void log_failure(const char* action, const char* reason) noexcept
{
  try {
    if (action == nullptr) {
      LOG(ERROR) << "overlay: " << reason;
    } else {
      LOG(ERROR) << "overlay: failed to " << action << ": " << reason;
    }
  } catch (...) {
    // There is no memory for the line. The failure has been handled.
  }
}

void close_log_at_exit()
{
  // Handlers run in the reverse order of their registration, so this one runs before the
  // destructors of libmesos, which was loaded before.
  static const int registered = std::atexit(closeLog);
  if (registered != 0) {
    LOG(WARNING) << "overlay: failed to register a function for the exit of the process";
  }
}

// --- Responder -----------------------------------------------------------------------------------

Responder::Responder(std::shared_ptr<Promise<Response>> promise) : promise(std::move(promise)) {}

Responder::~Responder()
{
  if (promise != nullptr) {
    guarded("answer a request", [this]() { respond(interrupted_response()); });
  }
}

void Responder::respond(const HttpResponse& answer)
{
  const Response sent = response(answer);
  std::shared_ptr<Promise<Response>> pending = std::move(promise);
  promise = nullptr;
  pending->set(sent);
}

// --- Sender --------------------------------------------------------------------------------------

void Sender::send(
    rust::Str id,
    uint32_t ip,
    uint16_t port,
    rust::Str name,
    rust::Slice<const uint8_t> body) const
{
  // libprocess before 1.5 requires copyable functions, so the lambda copies its captures.
  OverlayProcess* target = process;
  const UPID to = upid(id, ip, port);
  const std::string message(name);
  const std::string content(reinterpret_cast<const char*>(body.data()), body.size());
  process::dispatch(target->self(), [target, to, message, content]() {
    target->transmit(to, message, content);
  });
}

void Sender::link(rust::Str id, uint32_t ip, uint16_t port) const
{
  OverlayProcess* target = process;
  const UPID to = upid(id, ip, port);
  process::dispatch(target->self(), [target, to]() { target->connect(to); });
}

// --- OverlayProcess ------------------------------------------------------------------------------

OverlayProcess::OverlayProcess(
    rust::Box<Module> _module,
    std::unique_ptr<MasterDetector> _detector)
  : ProcessBase(std::string(_module->process())),
    interrupted(response(interrupted_response())),
    noValue(0.0),
    module(std::move(_module)),
    detector(std::move(_detector)) {}

void OverlayProcess::transmit(const UPID& to, const std::string& name, const std::string& body)
{
  guarded("send a message", [&]() { send(to, name, body.data(), body.size()); });
}

void OverlayProcess::connect(const UPID& to)
{
  guarded("link to a peer", [&]() { link(to); });
}

void OverlayProcess::initialize()
{
  guarded("start the process", [this]() {
    addRoutes();
    addMetrics();
    const process::network::inet::Address address = self().address;
    Try<struct in_addr> ip = address.ip.in();
    if (ip.isError()) {
      module->refuse_address(rust::String::lossy(stringify(address.ip)));
      return;
    }
    installMessages();
    if (detector != nullptr) {
      detect(None());
    }
    module->start(std::unique_ptr<Sender>(new Sender(this)), ntohl(ip->s_addr), address.port);
  });
}

void OverlayProcess::installMessages()
{
  for (const rust::String& message : module->messages()) {
    const std::string name(message);
    install(name, [this, name](const UPID& from, const std::string& body) {
      guarded("handle a message", [&]() {
        const rust::String sender = rust::String::lossy(stringify(from));
        module->message(sender, name, bytes(body));
      });
    });
  }
}

void OverlayProcess::addRoutes()
{
  for (const Route& path : module->routes()) {
    route(
        std::string(path.path),
        std::string(path.realm),
        std::string(path.help),
        AuthenticatedHttpRequestHandler(
            [this](const Request& request, const Option<Principal>& principal) {
              return answer(request, principal);
            }));
  }
}

Future<Response> OverlayProcess::answer(
    const Request& request,
    const Option<Principal>& principal)
{
  // Copying a future allocates nothing.
  Future<Response> future = interrupted;
  guarded("handle a request", [&]() {
    throwInTest(request);
    auto promise = std::make_shared<Promise<Response>>();
    std::unique_ptr<Responder> responder(new Responder(promise));
    future = promise->future();
    HttpRequest forwarded;
    forwarded.method = rust::String::lossy(request.method);
    forwarded.path = rust::String::lossy(request.url.path);
    for (const auto& pair : request.url.query) {
      forwarded.query.push_back(field(pair.first, pair.second));
    }
    for (const auto& pair : request.headers) {
      forwarded.headers.push_back(field(pair.first, pair.second));
    }
    if (request.client.isSome()) {
      forwarded.client = rust::String::lossy(stringify(request.client.get()));
    }
    forwarded.is_authenticated = principal.isSome();
    if (principal.isSome() && principal->value.isSome()) {
      forwarded.principal = rust::String::lossy(principal->value.get());
    }
    module->request(std::move(forwarded), bytes(request.body), std::move(responder));
  });
  return future;
}

void OverlayProcess::addMetrics()
{
  const rust::Vec<rust::String> names = module->metrics();
  for (size_t i = 0; i < names.size(); i++) {
    // If another copy of this library has registered the name, the metric of that copy stays.
    process::metrics::add(Gauge(std::string(names[i]), [this, i]() -> Future<double> {
      Future<double> value = noValue;
      guarded("read a metric", [&]() { value = Future<double>(module->metric(i)); });
      return value;
    }));
  }
}

void OverlayProcess::detect(const Option<mesos::MasterInfo>& previous)
{
  guarded("detect the leading master", [&]() {
    detector->detect(previous).onAny(process::defer(
        self(), [this](const Future<Option<mesos::MasterInfo>>& leader) { detected(leader); }));
  });
}

void OverlayProcess::detected(const Future<Option<mesos::MasterInfo>>& leader)
{
  guarded("detect the leading master", [&]() {
    if (leader.isReady()) {
      const bool hasPid = leader->isSome() && leader->get().has_pid();
      module->elected(hasPid ? rust::String::lossy(leader->get().pid()) : rust::String());
      detect(leader.get());
      return;
    }
    LOG(ERROR) << "overlay: failed to detect the leading master: "
               << (leader.isFailed() ? leader.failure() : "discarded")
               << ": retrying in " << DETECTION_BACKOFF;
    module->elected(rust::String());
    process::delay(DETECTION_BACKOFF, self(), &OverlayProcess::restartDetector);
  });
}

// Replaces the detector: a detector that has failed never recovers. The former detector is leaked:
// its destructor would block this thread of libprocess until the detector's process has ended.
void OverlayProcess::restartDetector()
{
  guarded("detect the leading master", [this]() {
    Try<MasterDetector*> created = MasterDetector::create(std::string(module->election()));
    if (created.isSome()) {
      detector.release();
      detector.reset(created.get());
    }
    detect(None());
  });
}

void OverlayProcess::exited(const UPID& pid)
{
  guarded("handle the end of a link", [&]() {
    module->exited(rust::String::lossy(stringify(pid)));
  });
}

void OverlayProcess::finalize()
{
  guarded("stop the process", [this]() { module->stop(); });
}

// --- The log -------------------------------------------------------------------------------------

void write_log(int32_t severity, rust::Str file, uint32_t line, rust::Str text)
{
  guarded("write to the log", [&]() {
    const std::string name(file);
    LogGate& gate = logGate();
    std::lock_guard<std::timed_mutex> lock(gate.lock);
    if (gate.closed) {
      return;
    }
    google::LogMessage(name.c_str(), static_cast<int>(line), severity).stream()
      << std::string(text);
  });
}

int32_t log_verbosity()
{
  return FLAGS_v;
}

} // namespace mesos_overlay {
