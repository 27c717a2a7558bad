// The functions that Mesos calls to create a module. Static assertions check that the records in
// src/module/manifest.rs have the layout that Mesos reads.

#include <cstddef>
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include <glog/logging.h>

#include <mesos/mesos.hpp>
#include <mesos/module.hpp>

#include <mesos/module/anonymous.hpp>

#include <process/process.hpp>

#include <stout/option.hpp>
#include <stout/try.hpp>

#include "process.hpp"

using mesos::Parameters;

using mesos::master::detector::MasterDetector;

using mesos::modules::Anonymous;
using mesos::modules::Module;
using mesos::modules::ModuleBase;

// src/module/manifest.rs defines these records field by field, in the layout of mesos/module.hpp.
static_assert(sizeof(ModuleBase) == 7 * sizeof(void*), "ModuleBase is not seven pointers");
static_assert(offsetof(ModuleBase, moduleApiVersion) == 0, "ModuleBase has another order");
static_assert(offsetof(ModuleBase, mesosVersion) == sizeof(void*), "ModuleBase has another order");
static_assert(offsetof(ModuleBase, kind) == 2 * sizeof(void*), "ModuleBase has another order");
static_assert(offsetof(ModuleBase, authorName) == 3 * sizeof(void*), "ModuleBase: another order");
static_assert(offsetof(ModuleBase, authorEmail) == 4 * sizeof(void*), "ModuleBase: another order");
static_assert(offsetof(ModuleBase, description) == 5 * sizeof(void*), "ModuleBase: another order");
static_assert(offsetof(ModuleBase, compatible) == 6 * sizeof(void*), "ModuleBase: another order");
static_assert(sizeof(Module<Anonymous>) == 8 * sizeof(void*), "Module is not eight pointers");
static_assert(alignof(Module<Anonymous>) == alignof(void*), "Module is aligned otherwise");

namespace mesos_overlay {

namespace {

// The object that Mesos keeps for a module. Mesos never deletes it and calls none of its functions.
class Handle : public Anonymous {};

// Returns the module, or null after logging the reason: Mesos supports no other error report.
Anonymous* create(Kind kind, const Parameters& parameters) noexcept
{
  try {
    close_log_at_exit();
    rust::Vec<Parameter> pairs;
    for (int i = 0; i < parameters.parameter_size(); i++) {
      const mesos::Parameter& parameter = parameters.parameter(i);
      pairs.push_back(Parameter{
          rust::String::lossy(parameter.key()), rust::String::lossy(parameter.value())});
    }
    rust::Box<Module> module = create_module(kind, std::move(pairs));

    std::unique_ptr<MasterDetector> detector;
    const std::string election(module->election());
    if (!election.empty()) {
      Try<MasterDetector*> created = MasterDetector::create(election);
      if (created.isError()) {
        LOG(ERROR) << "overlay: failed to follow the election of the master: " << created.error();
        return nullptr;
      }
      detector.reset(created.get());
    }

    OverlayProcess* process = new OverlayProcess(std::move(module), std::move(detector));
    const process::UPID pid = process::spawn(process);
    if (!pid) {
      LOG(ERROR) << "overlay: a process of this name runs already: is another copy of this"
                 << " library, or the C++ module, loaded too?";
      delete process;
      return nullptr;
    }
    return new Handle();
  } catch (const std::exception& e) {
    log_failure(nullptr, e.what());
  } catch (...) {
    log_failure("create the module", "unknown exception");
  }
  return nullptr;
}

} // namespace {

} // namespace mesos_overlay {

// The records contain pointers to these functions.

extern "C" Anonymous* mesos_overlay_create_master(const Parameters& parameters) noexcept
{
  return mesos_overlay::create(mesos_overlay::Kind::Master, parameters);
}

extern "C" Anonymous* mesos_overlay_create_agent(const Parameters& parameters) noexcept
{
  return mesos_overlay::create(mesos_overlay::Kind::Agent, parameters);
}
