// Environments in Python in the program's own process: a program that includes this, and links dvla::python, has the
// knob environment.embedded. The interpreter is CPython, begun once, at the first environment, and ended at exit;
// worker.py runs in it as it does in a worker, and writes into the environment pool, which it sees at its own address.
// All rows share its lock, so they are stepped one after the other, and a call cannot be cut short: the run's step
// deadline ends the process. What workers give beyond that: other cores, deadlines of their own, any torch.
// Header and library are of the interpreter that CMake was given (DVLA_PYTHON).
#pragma once

#include <Python.h>
#include <link.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "dvla/core/error.hpp"
#include "dvla/environment/python/embedding.hpp"
#include "dvla/io/child_process.hpp"

namespace dvla {

/// The one interpreter that a process can have.
class EmbeddedPython {
 public:
  /// Its lock, for the calling thread, whichever that is.
  class Lock {
   public:
    Lock() : state_((under_way.fetch_add(1, std::memory_order_relaxed), PyGILState_Ensure())) {}
    ~Lock() {
      PyGILState_Release(state_);
      under_way.fetch_sub(1, std::memory_order_relaxed);
    }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

   private:
    PyGILState_STATE state_;
  };
  struct Release {
    void operator()(PyObject* object) const { Py_DECREF(object); }
  };
  using Object = std::unique_ptr<PyObject, Release>;  ///< ends under the lock

  /// Starts it with the packages of `python`, a path, unless it runs. Throws ConfigError where that is another
  /// Python than the library's, or it runs with other packages. Thread-safe. Signals stay this program's.
  static void start(const std::string& python) {
    static std::mutex mutex;
    static std::string running;
    const std::lock_guard lock(mutex);
    const std::string path = std::filesystem::absolute(python).lexically_normal().string();
    if (!running.empty()) {
      if (running != path)
        throw ConfigError("environment.python is '", path,
                          "', and this process has begun its one interpreter with '", running,
                          "': let environments of another run in workers (embedded false)");
      return;
    }
    const std::string said = version_of(path), linked = std::string(Py_GetVersion()).substr(0, said.size());
    if (said != linked || std::string_view(Py_GetVersion()).substr(said.size(), 1) != " ")
      throw ConfigError(
          "environment.embedded is true, and '", path, "' is Python ", said,
          ", while this program has the library of Python ",
          std::string_view(Py_GetVersion()).substr(0, std::string_view(Py_GetVersion()).find(' ')),
          ": configure it with -DDVLA_PYTHON=", path,
          ", or let environments run in workers (embedded "
          "false)");
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    config.parse_argv = 0;
    PyStatus status = PyConfig_SetBytesString(&config, &config.executable, path.c_str());
    if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
      throw ConfigError("Python does not start with '", path,
                        "': ", status.err_msg ? status.err_msg : "no reason given");
    PyEval_SaveThread();
    running = path;
  }

  /// What Python raised last, as an Error. Under the lock.
  [[noreturn]] static void raise(const std::string& where) {
    PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    const Object own_type(type), own_value(value), own_trace(trace);
    std::string why = type != nullptr ? reinterpret_cast<PyTypeObject*>(type)->tp_name : "no exception";
    if (const Object text(value != nullptr ? PyObject_Str(value) : nullptr); text)
      if (const char* const words = PyUnicode_AsUTF8(text.get())) why += std::string(": ") + words;
    PyErr_Clear();
    throw Error(where, ": ", why);
  }

  /// Ends it, unless a thread is in it that does not come back: at exit, before what Python has loaded is torn down.
  static void end_at_exit() {
    std::atexit([] {
      if (under_way.load(std::memory_order_relaxed) > 0 || !Py_IsInitialized()) return;
      (void)PyGILState_Ensure();
      Py_FinalizeEx();
    });
  }

 private:
  static std::string version_of(const std::string& python) {
    const auto asked =
        io::run_child({python, "-c", "import platform; print(platform.python_version(), end='')"}, {},
                      std::chrono::seconds(30));
    if (asked.exit_code != 0 || asked.out.empty())
      throw ConfigError("environment.python is '", python,
                        "', which does not say what Python it is: ", asked.err);
    return asked.out;
  }

  static inline std::atomic<int> under_way{0};
};

namespace detail {

/// The file that a library was loaded from; empty: it is not loaded.
inline std::string loaded_library(std::string_view name) {
  std::pair<std::string_view, std::string> looked{name, {}};
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        auto& [wanted, found] = *static_cast<std::pair<std::string_view, std::string>*>(data);
        const std::string_view path = info->dlpi_name;
        if (path.substr(path.rfind('/') + 1) == wanted) found = path;
        return found.empty() ? 0 : 1;
      },
      &looked);
  return looked.second;
}

inline std::function<std::string(const std::string&)> python_seat(const PythonSeat& seat) {
  using Object = EmbeddedPython::Object;
  EmbeddedPython::start(seat.python);
  const EmbeddedPython::Lock lock;
  const Object globals(PyDict_New());
  PyDict_SetItemString(globals.get(), "__builtins__", PyEval_GetBuiltins());
  const Object name(PyUnicode_FromString("dvla_worker"));
  PyDict_SetItemString(globals.get(), "__name__", name.get());
  const Object code(Py_CompileString(seat.program.c_str(), "<string>", Py_file_input));
  const Object done(code ? PyEval_EvalCode(code.get(), globals.get(), globals.get()) : nullptr);
  if (!done) EmbeddedPython::raise("worker.py does not run");
  const Object pool(PyMemoryView_FromMemory(reinterpret_cast<char*>(seat.pool.data()),
                                            static_cast<Py_ssize_t>(seat.pool.size()), PyBUF_WRITE));
  auto* const made =
      PyObject_CallFunction(PyDict_GetItemString(globals.get(), "Embedded"), "sOs", seat.told.c_str(),
                            pool.get(), loaded_library("libtorch_cpu.so").c_str());
  if (made == nullptr) EmbeddedPython::raise("the environment cannot be embedded");
  const std::shared_ptr<PyObject> embedded(made, [](PyObject* object) {
    if (!Py_IsInitialized()) return;
    const EmbeddedPython::Lock again;
    Py_DECREF(object);
  });
  return [embedded, begun = false](const std::string& text) mutable {
    const EmbeddedPython::Lock locked;
    const Object message(PyBytes_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.size())));
    const Object method(PyUnicode_FromString("answer"));
    const Object answer(PyObject_CallMethodObjArgs(embedded.get(), method.get(), message.get(), nullptr));
    if (!answer) EmbeddedPython::raise("an embedded environment fails");
    if (!std::exchange(begun, true)) EmbeddedPython::end_at_exit();  // after what it has loaded
    return std::string(PyBytes_AsString(answer.get()), static_cast<std::size_t>(PyBytes_Size(answer.get())));
  };
}

inline const bool python_is_embedded = (embed_python = &python_seat) != nullptr;

}  // namespace detail
}  // namespace dvla
