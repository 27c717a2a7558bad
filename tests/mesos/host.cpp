// A host for modules that behaves like mesos-master and mesos-agent: it runs libprocess, loads a
// module as Mesos' module manager does, and creates it. Each line on standard input is a command
// with fields separated by tabs. Each command gets one line on standard output: `ok` and fields, or
// `error` and the reason. The host takes no decisions; the tests beside it contain the assertions.

#include <dlfcn.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <glog/logging.h>

#include <mesos/mesos.hpp>
#include <mesos/module.hpp>
#include <mesos/version.hpp>

#include <mesos/module/anonymous.hpp>

#include <process/authenticator.hpp>
#include <process/dispatch.hpp>
#include <process/future.hpp>
#include <process/http.hpp>
#include <process/owned.hpp>
#include <process/pid.hpp>
#include <process/process.hpp>

#include <stout/duration.hpp>
#include <stout/hashmap.hpp>
#include <stout/nothing.hpp>
#include <stout/stringify.hpp>

namespace authentication = process::http::authentication;

using mesos::modules::Anonymous;
using mesos::modules::Module;
using mesos::modules::ModuleBase;

using process::UPID;

using std::string;
using std::vector;

namespace {

// Timeout of a call into libprocess. A process that does not answer in this time is blocked.
const Duration TIMEOUT = Seconds(60);

// --- Fields --------------------------------------------------------------------------------------

vector<string> split(const string& line)
{
  vector<string> fields(1);
  for (char letter : line) {
    if (letter == '\t') {
      fields.emplace_back();
    } else {
      fields.back() += letter;
    }
  }
  return fields;
}

string toHex(const string& bytes)
{
  static const char digits[] = "0123456789abcdef";
  string text;
  for (unsigned char byte : bytes) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

string fromHex(const string& text)
{
  string bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

string oneLine(string text)
{
  for (char& letter : text) {
    letter = letter == '\n' || letter == '\t' ? ' ' : letter;
  }
  return text;
}

const string& at(const vector<string>& fields, size_t index)
{
  if (index >= fields.size()) {
    throw std::runtime_error("there are too few fields");
  }
  return fields[index];
}

template <typename Unit, typename F>
string measure(F&& work)
{
  const auto before = std::chrono::steady_clock::now();
  work();
  const auto time = std::chrono::steady_clock::now() - before;
  return "\t" + std::to_string(std::chrono::duration_cast<Unit>(time).count());
}

// --- Modules -------------------------------------------------------------------------------------

// Finds the record of a module in the same way as Mesos.
ModuleBase* find(const string& path, const string& symbol)
{
  // Mesos opens each library once and never closes it.
  static std::map<string, void*> libraries;
  void*& library = libraries[path];
  if (library == nullptr) {
    library = dlopen(path.c_str(), RTLD_NOW);
  }
  if (library == nullptr) {
    throw std::runtime_error(dlerror());
  }
  void* found = dlsym(library, symbol.c_str());
  if (found == nullptr) {
    throw std::runtime_error(dlerror());
  }
  return static_cast<ModuleBase*>(found);
}

vector<const char*> texts(const ModuleBase& base)
{
  return {base.moduleApiVersion, base.mesosVersion, base.kind,
          base.authorName, base.authorEmail, base.description};
}

void check(const ModuleBase& base)
{
  for (const char* text : texts(base)) {
    if (text == nullptr) {
      throw std::runtime_error("a text of the record is null");
    }
  }
  if (strcmp(base.moduleApiVersion, MESOS_MODULE_API_VERSION) != 0) {
    throw std::runtime_error(string("the module has the API version ") + base.moduleApiVersion);
  }
  if (strcmp(base.kind, "Anonymous") != 0) {
    throw std::runtime_error(string("the module has the kind ") + base.kind);
  }
  // Without the function `compatible`, Mesos requires equal versions.
  if (base.compatible != nullptr || strcmp(base.mesosVersion, MESOS_VERSION) != 0) {
    throw std::runtime_error(string("the module is for Mesos ") + base.mesosVersion);
  }
}

string manifest(const vector<string>& fields)
{
  const ModuleBase& base = *find(at(fields, 1), at(fields, 2));
  check(base);
  string answer;
  for (const char* text : texts(base)) {
    answer += string("\t") + text;
  }
  return answer;
}

// Creates a module with parameters `key=value`.
string load(const vector<string>& fields)
{
  ModuleBase* base = find(at(fields, 1), at(fields, 2));
  check(*base);
  mesos::Parameters parameters;
  for (size_t i = 3; i < fields.size(); i++) {
    const size_t end = fields[i].find('=');
    if (end == string::npos) {
      throw std::runtime_error("a parameter is key=value, not " + fields[i]);
    }
    mesos::Parameter* parameter = parameters.add_parameter();
    parameter->set_key(fields[i].substr(0, end));
    parameter->set_value(fields[i].substr(end + 1));
  }
  // Mesos does not use the returned object either.
  Anonymous* module = static_cast<Module<Anonymous>*>(base)->create(parameters);
  return module == nullptr ? "\tnull" : "\tmade";
}

// --- Processes -----------------------------------------------------------------------------------

// A further process of this Mesos that records the messages it receives.
class Recorder : public process::Process<Recorder>
{
public:
  Recorder(const string& id, vector<string> _names)
    : ProcessBase(id), names(std::move(_names)) {}

  Nothing answer() { return Nothing(); }

  Nothing transmit(const UPID& to, const string& name, const string& body, int count)
  {
    for (int i = 0; i < count; i++) {
      send(to, name, body.data(), body.size());
    }
    return Nothing();
  }

  // Returns the messages since the last call: name, sender, body.
  string take()
  {
    string taken;
    std::lock_guard<std::mutex> guard(lock);
    recorded.swap(taken);
    return taken;
  }

protected:
  void initialize() override
  {
    for (const string& name : names) {
      install(name, [this, name](const UPID& from, const string& body) {
        record(name, stringify(from), body);
      });
    }
  }

private:
  void record(const string& name, const string& from, const string& body)
  {
    std::lock_guard<std::mutex> guard(lock);
    recorded += "\t" + name + "\t" + from + "\t" + toHex(body);
  }

  const vector<string> names;
  std::mutex lock;
  string recorded;
};

// The recorders live as long as the program.
std::map<string, Recorder*>& recorders()
{
  static std::map<string, Recorder*>* all = new std::map<string, Recorder*>();
  return *all;
}

Recorder& recorder(const string& id)
{
  auto found = recorders().find(id);
  if (found == recorders().end()) {
    throw std::runtime_error("there is no recorder " + id);
  }
  return *found->second;
}

template <typename T>
void await(const process::Future<T>& future)
{
  if (!future.await(TIMEOUT)) {
    throw std::runtime_error("timed out");
  }
  if (!future.isReady()) {
    throw std::runtime_error(future.isFailed() ? future.failure() : "discarded");
  }
}

string spawn(const vector<string>& fields)
{
  const string& id = at(fields, 1);
  Recorder* added = new Recorder(id, vector<string>(fields.begin() + 2, fields.end()));
  if (!process::spawn(added)) {
    delete added;
    throw std::runtime_error("a process exists already: " + id);
  }
  recorders()[id] = added;
  return "";
}

// Sends one message, or the number of messages in the last field.
string send(const vector<string>& fields)
{
  const int count = fields.size() > 5 ? std::stoi(fields[5]) : 1;
  await(process::dispatch(
      recorder(at(fields, 1)).self(),
      &Recorder::transmit,
      UPID(at(fields, 2)),
      at(fields, 3),
      fromHex(at(fields, 4)),
      count));
  return "";
}

// Measures an empty dispatch to a process, in microseconds.
string ping(const vector<string>& fields)
{
  const Recorder& target = recorder(at(fields, 1));
  return measure<std::chrono::microseconds>(
      [&target]() { await(process::dispatch(target.self(), &Recorder::answer)); });
}

string realm(const vector<string>& fields)
{
  const string& name = at(fields, 1);
  hashmap<string, string> credentials;
  credentials[at(fields, 2)] = at(fields, 3);
  await(authentication::setAuthenticator(
      name,
      process::Owned<authentication::Authenticator>(
          new authentication::BasicAuthenticator(name, credentials))));
  return "";
}

// --- The process as a whole ----------------------------------------------------------------------

// Lists the handler and flags of each signal, without invalid signal numbers.
string signals(const vector<string>&)
{
  string answer;
  for (int number = 1; number < NSIG; number++) {
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    if (sigaction(number, nullptr, &action) == 0) {
      answer += "\t" + std::to_string(number) + " ";
      answer += stringify(reinterpret_cast<uintptr_t>(action.sa_handler)) + " ";
      answer += std::to_string(action.sa_flags);
    }
  }
  return answer;
}

// Lists the current environment; /proc shows the environment at the start.
string environment(const vector<string>&)
{
  string answer;
  for (char** variable = environ; *variable != nullptr; variable++) {
    answer += "\t" + toHex(*variable);
  }
  return answer;
}

string finalize(const vector<string>&)
{
  return measure<std::chrono::milliseconds>([]() { process::finalize(true); });
}

const std::map<string, std::function<string(const vector<string>&)>> COMMANDS = {
  {"address", [](const vector<string>&) { return "\t" + stringify(process::address()); }},
  {"environment", environment},
  {"finalize", finalize},
  {"load", load},
  {"manifest", manifest},
  {"ping", ping},
  {"realm", realm},
  {"received", [](const vector<string>& f) { return recorder(at(f, 1)).take(); }},
  {"send", send},
  {"signals", signals},
  {"spawn", spawn},
};

string execute(const vector<string>& fields)
{
  auto command = COMMANDS.find(fields[0]);
  if (command == COMMANDS.end()) {
    return "error\tthere is no command " + fields[0];
  }
  try {
    return "ok" + command->second(fields);
  } catch (const std::exception& e) {
    return string("error\t") + oneLine(e.what());
  }
}

} // namespace {

int main(int, char** arguments)
{
  google::InitGoogleLogging(arguments[0]);
  // The realms of libprocess' own endpoints, as in mesos-master.
  process::initialize(
      string("master"), string("mesos-master-readwrite"), string("mesos-master-readonly"));
  string line;
  // mesos-master also returns from main while libprocess runs.
  while (std::getline(std::cin, line) && line != "exit") {
    std::cout << execute(split(line)) << std::endl;
  }
  return 0;
}
