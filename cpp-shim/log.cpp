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

// The names of the C++ module: this module reads and continues its state.
const char VARIABLE[] = "network-state";
const char REPLICAS[] = "overlay_log_replicas";
const char METRICS_PREFIX[] = "overlay/master/";

Duration milliseconds(uint64_t count)
{
  return Milliseconds(static_cast<int64_t>(count));
}

const char TIMEOUT[] =
  "timed out: check that enough masters run, and that they reach each other and ZooKeeper";

// Returns the reason why a completed future has no result.
template <typename T>
std::runtime_error reason(const Future<T>& future)
{
  return std::runtime_error(future.isFailed() ? future.failure() : "discarded by Mesos");
}

} // namespace {

StateLog::StateLog(std::unique_ptr<Log> _log, const char* _name)
  : log(std::move(_log)), name(_name)
{
  renew();
}

// Replaces the LogStorage. A LogStorage that has failed to become the writer, or was discarded,
// never retries (src/state/log.cpp of Mesos: `starting` keeps its future). The former LogStorage is
// leaked: its destructor would remove the metric of the new LogStorage.
void StateLog::renew()
{
  variable = None();
  fetching = None();
  state.release();
  storage.release();
  storage.reset(new LogStorage(log.get()));
  state.reset(new State(storage.get()));
}

std::unique_ptr<std::string> StateLog::fetch(uint64_t timeout)
{
  variable = None();
  if (fetching.isNone()) {
    fetching = state->fetch(name);
  }
  const Future<Variable> future = fetching.get();
  if (!future.await(milliseconds(timeout))) {
    // The fetch continues, and the next call waits for the same future.
    throw std::runtime_error(TIMEOUT);
  }
  if (!future.isReady()) {
    renew();
    throw reason(future);
  }
  fetching = None();
  variable = future.get();
  return std::unique_ptr<std::string>(new std::string(variable->value()));
}

bool StateLog::store(rust::Slice<const uint8_t> value, uint64_t timeout)
{
  if (variable.isNone()) {
    throw std::runtime_error("the log has not been read yet");
  }
  const std::string bytes(reinterpret_cast<const char*>(value.data()), value.size());
  const Future<Option<Variable>> future = state->store(variable->mutate(bytes));
  // The next write needs the variable of this write, or a new fetch.
  variable = None();
  const bool completed = future.await(milliseconds(timeout));
  if (!completed || !future.isReady()) {
    renew();
    throw completed ? reason(future) : std::runtime_error(TIMEOUT);
  }
  variable = future.get();
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
