#include "log.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
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

const char CLOSED[] = "Mesos is about to end";

// Longest wait for an operation, so that the end of the wait is a valid time.
const uint64_t WAIT_MAX = 24 * 60 * 60 * 1000;

// Longest wait at the end of Mesos for a log that is being opened, which calls libprocess.
const std::chrono::milliseconds OPENING_WAIT(1000);

// Separates the thread of the store from the end of libprocess. Never destroyed.
struct Gate
{
  std::mutex lock;
  std::condition_variable changed;
  bool closed = false;
  bool opening = false;
};

Gate& gate()
{
  static Gate* gate = new Gate();
  return *gate;
}

// Runs `work`, which calls libprocess and does not wait. Throws if Mesos is about to end.
template <typename F>
auto call(F&& work) -> decltype(work())
{
  std::lock_guard<std::mutex> lock(gate().lock);
  if (gate().closed) {
    throw std::runtime_error(CLOSED);
  }
  return work();
}

// Waits until the future has completed. Returns false after the timeout. Throws if Mesos is about
// to end. Future::await would spawn a libprocess process, which starts libprocess again after its end.
template <typename T>
bool await(const Future<T>& future, uint64_t timeout)
{
  future.onAny([](const Future<T>&) {
    try {
      std::lock_guard<std::mutex> lock(gate().lock);
      gate().changed.notify_all();
    } catch (...) {
      // The wait ends at its timeout.
    }
  });
  std::unique_lock<std::mutex> lock(gate().lock);
  const std::chrono::milliseconds longest(std::min(timeout, WAIT_MAX));
  gate().changed.wait_for(
      lock, longest, [&future]() { return gate().closed || !future.isPending(); });
  if (gate().closed) {
    throw std::runtime_error(CLOSED);
  }
  return !future.isPending();
}

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
  try {
    call([this]() { renew(); });
  } catch (...) {
    // The destructor would wait for libprocess.
    log.release();
    throw;
  }
}

// Replaces the LogStorage. A LogStorage that has failed to become the writer, or was discarded,
// never retries (src/state/log.cpp of Mesos: `starting` keeps its future). The former LogStorage is
// leaked: its destructor would remove the metric of the new LogStorage. Must run in `call`.
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
    call([this]() { fetching = state->fetch(name); });
  }
  const Future<Variable> future = fetching.get();
  if (!await(future, timeout)) {
    // The fetch continues, and the next call waits for the same future.
    throw std::runtime_error(TIMEOUT);
  }
  if (!future.isReady()) {
    call([this]() { renew(); });
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
  const Future<Option<Variable>> future =
    call([this, &bytes]() { return state->store(variable->mutate(bytes)); });
  // The next write needs the variable of this write, or a new fetch.
  variable = None();
  const bool completed = await(future, timeout);
  if (!completed || !future.isReady()) {
    call([this]() { renew(); });
    throw completed ? reason(future) : std::runtime_error(TIMEOUT);
  }
  variable = future.get();
  return variable.isSome();
}

void close_log()
{
  std::unique_lock<std::mutex> lock(gate().lock);
  gate().closed = true;
  gate().changed.notify_all();
  gate().changed.wait_for(lock, OPENING_WAIT, []() { return !gate().opening; });
}

std::unique_ptr<StateLog> open_log(
    rust::Str _directory,
    uint32_t quorum,
    rust::Str _url,
    uint64_t session_timeout)
{
  const std::string directory(_directory);
  const std::string url(_url);
  // Opening may wait for a disk, so it does not hold the lock.
  call([]() { gate().opening = true; });
  const std::shared_ptr<void> opening(nullptr, [](void*) {
    std::lock_guard<std::mutex> lock(gate().lock);
    gate().opening = false;
    gate().changed.notify_all();
  });
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
