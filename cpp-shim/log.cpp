#include "log.hpp"

#include <set>
#include <stdexcept>
#include <string>

#include <mesos/zookeeper/url.hpp>

#include <process/future.hpp>
#include <process/pid.hpp>

#include <stout/duration.hpp>
#include <stout/none.hpp>
#include <stout/path.hpp>
#include <stout/try.hpp>

using mesos::log::Log;

using mesos::state::LogStorage;
using mesos::state::State;
using mesos::state::Variable;

using process::Future;

namespace mesos_overlay {

namespace {

// These names are those of the C++ module, whose state is taken over.
const char VARIABLE[] = "network-state";
const char REPLICAS[] = "overlay_log_replicas";
const char METRICS_PREFIX[] = "overlay/master/";

Duration milliseconds(uint64_t count)
{
  return Milliseconds(static_cast<int64_t>(count));
}

// The result, or an exception with the reason. A future that is late is given up: nobody else waits
// for it, and the log goes on trying for ever otherwise.
template <typename T>
T result(Future<T> future, uint64_t timeout)
{
  if (!future.await(milliseconds(timeout))) {
    future.discard();
    throw std::runtime_error(
        "no answer in time: see whether enough masters run, and reach each other and ZooKeeper");
  }
  if (!future.isReady()) {
    throw std::runtime_error(future.isFailed() ? future.failure() : "given up by Mesos");
  }
  return future.get();
}

} // namespace {

StateLog::StateLog(std::unique_ptr<Log> _log, const char* _name)
  : log(std::move(_log)),
    storage(new LogStorage(log.get())),
    state(new State(storage.get())),
    name(_name) {}

rust::Vec<uint8_t> StateLog::fetch(uint64_t timeout)
{
  variable = result(state->fetch(name), timeout);
  const std::string value = variable->value();
  rust::Vec<uint8_t> bytes;
  bytes.reserve(value.size());
  for (const char byte : value) {
    bytes.push_back(static_cast<uint8_t>(byte));
  }
  return bytes;
}

bool StateLog::store(rust::Slice<const uint8_t> value, uint64_t timeout)
{
  if (variable.isNone()) {
    throw std::runtime_error("the log was not read yet");
  }
  const std::string bytes(reinterpret_cast<const char*>(value.data()), value.size());
  const Variable changed = variable->mutate(bytes);
  // Until it is known to be stored, nothing can be stored on top of it.
  variable = None();
  variable = result(state->store(changed), timeout);
  return variable.isSome();
}

std::unique_ptr<StateLog> open_log(
    rust::Str _directory,
    uint32_t quorum,
    rust::Str _url,
    uint64_t session_timeout)
{
  const std::string directory(_directory);
  const std::string url(_url);
  std::unique_ptr<Log> log;
  if (url.empty()) {
    log.reset(new Log(
        static_cast<int>(quorum),
        directory,
        std::set<process::UPID>(),
        true,
        std::string(METRICS_PREFIX)));
  } else {
    Try<zookeeper::URL> parsed = zookeeper::URL::parse(url);
    if (parsed.isError()) {
      throw std::runtime_error(parsed.error());
    }
    log.reset(new Log(
        static_cast<int>(quorum),
        directory,
        parsed->servers,
        milliseconds(session_timeout),
        path::join(parsed->path, REPLICAS),
        parsed->authentication,
        true,
        std::string(METRICS_PREFIX)));
  }
  return std::unique_ptr<StateLog>(new StateLog(std::move(log), VARIABLE));
}

} // namespace mesos_overlay {
