// A program that does with a module what mesos-master and mesos-agent do: it runs libprocess, loads
// the module as Mesos' module manager does, and makes it. What happens is scripted by lines on
// standard input, fields separated by tabs; each gets one line on standard output: `ok` and fields,
// or `error` and why. It decides and asserts nothing: that is done by the tests beside it.

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

// Longest wait for something in libprocess: a process that does not answer by then is blocked.
const Duration PATIENCE = Seconds(60);

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
string took(F&& work)
{
  const auto before = std::chrono::steady_clock::now();
  work();
  const auto time = std::chrono::steady_clock::now() - before;
  return "\t" + std::to_string(std::chrono::duration_cast<Unit>(time).count());
}

// --- Modules -------------------------------------------------------------------------------------

// The record of a module, found and looked at as Mesos does.
ModuleBase* find(const string& path, const string& symbol)
{
  // Mesos opens each file once and never closes it.
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
    throw std::runtime_error(string("it has the module API ") + base.moduleApiVersion);
  }
  if (strcmp(base.kind, "Anonymous") != 0) {
    throw std::runtime_error(string("it is of the kind ") + base.kind);
  }
  // Without a function that says otherwise, the versions must be the same.
  if (base.compatible != nullptr || strcmp(base.mesosVersion, MESOS_VERSION) != 0) {
    throw std::runtime_error(string("it is for Mesos ") + base.mesosVersion);
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

// Makes a module with parameters `key=value`.
string load(const vector<string>& fields)
{
  ModuleBase* base = find(at(fields, 1), at(fields, 2));
  check(*base);
  mesos::Parameters parameters;
  for (size_t i = 3; i < fields.size(); i++) {
    const size_t end = fields[i].find('=');
    if (end == string::npos) {
      throw std::runtime_error("no parameter: " + fields[i]);
    }
    mesos::Parameter* parameter = parameters.add_parameter();
    parameter->set_key(fields[i].substr(0, end));
    parameter->set_value(fields[i].substr(end + 1));
  }
  // Mesos, too, forgets what it gets.
  Anonymous* made = static_cast<Module<Anonymous>*>(base)->create(parameters);
  return made == nullptr ? "\tnull" : "\tmade";
}

// --- Processes -----------------------------------------------------------------------------------

// Another process of this Mesos: it notes what it gets.
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

  // What was noted since it was last asked for: name, sender, body.
  string take()
  {
    string taken;
    std::lock_guard<std::mutex> guard(lock);
    noted.swap(taken);
    return taken;
  }

protected:
  void initialize() override
  {
    for (const string& name : names) {
      install(name, [this, name](const UPID& from, const string& body) {
        note(name, stringify(from), body);
      });
    }
  }

private:
  void note(const string& name, const string& from, const string& body)
  {
    std::lock_guard<std::mutex> guard(lock);
    noted += "\t" + name + "\t" + from + "\t" + toHex(body);
  }

  const vector<string> names;
  std::mutex lock;
  string noted;
};

// They live as long as the program.
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
  if (!future.await(PATIENCE)) {
    throw std::runtime_error("it takes too long");
  }
  if (!future.isReady()) {
    throw std::runtime_error(future.isFailed() ? future.failure() : "it was discarded");
  }
}

string spawn(const vector<string>& fields)
{
  const string& id = at(fields, 1);
  Recorder* made = new Recorder(id, vector<string>(fields.begin() + 2, fields.end()));
  if (!process::spawn(made)) {
    delete made;
    throw std::runtime_error("there is a process " + id);
  }
  recorders()[id] = made;
  return "";
}

// One message, or as many as the last field says.
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

// How long a process takes to do nothing, in microseconds.
string ping(const vector<string>& fields)
{
  const Recorder& asked = recorder(at(fields, 1));
  return took<std::chrono::microseconds>(
      [&asked]() { await(process::dispatch(asked.self(), &Recorder::answer)); });
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

// What handles each signal; a number that is none is left out.
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

// As it is now: /proc shows what it was at the start.
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
  return took<std::chrono::milliseconds>([]() { process::finalize(true); });
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

string obey(const vector<string>& fields)
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
  // The realms of libprocess' own endpoints, as mesos-master has them.
  process::initialize(
      string("master"), string("mesos-master-readwrite"), string("mesos-master-readonly"));
  string line;
  // Ends as mesos-master does: by returning, while libprocess runs.
  while (std::getline(std::cin, line) && line != "exit") {
    std::cout << obey(split(line)) << std::endl;
  }
  return 0;
}
