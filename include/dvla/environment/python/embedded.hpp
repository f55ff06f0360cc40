// Environments in Python in the program's own process: a program one of whose files includes this, and that links
// dvla::python, has the knob environment.embedded. The interpreter is CPython, begun once, at the first environment, and
// ended at exit. It has a thread of its own, which makes all environments and steps them, one row after the other (a
// picture's context belongs to the thread that made it); worker.py runs in it as it does in a worker, and writes into
// the environment pool, which it sees at its own address. A call that does not come back is late as a worker's is, but
// cannot be ended: no other will come back either. Header and library are of the interpreter that CMake was given
// (DVLA_PYTHON).
#pragma once

#include <Python.h>
#include <link.h>
#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "dvla/core/error.hpp"
#include "dvla/environment/python/embedding.hpp"
#include "dvla/environment/python/program.hpp"
#include "dvla/io/child_process.hpp"

namespace dvla {

/// The one interpreter that a process can have, and its thread. Thread-safe.
class EmbeddedPython {
 public:
  struct Release {
    void operator()(PyObject* object) const { Py_DECREF(object); }
  };
  using Object = std::unique_ptr<PyObject, Release>;  ///< lives and ends in the interpreter's thread

  /// Has `work` done in the interpreter's thread, after what it was given before. Throws Error if it has ended.
  static void post(std::function<void()> work) {
    {
      const std::lock_guard lock(self().mutex_);
      if (self().ended_) throw Error("this process's Python has ended");
      self().work_.push_back(std::move(work));
    }
    self().changed_.notify_one();
  }
  /// Starts it with the packages of `python`, unless it runs. Throws ConfigError where that is another Python than
  /// the library's, or it runs with others. Signals stay this program's.
  static void start(const std::string& python) {
    static std::mutex mutex;
    static std::string running, given;
    const std::lock_guard lock(mutex);
    if (!running.empty() && python == given) return;
    const auto [path, version] = asked(python);
    const std::string linked = std::string(Py_GetVersion()).substr(0, std::string(Py_GetVersion()).find(' '));
    if (!running.empty() && running != path)
      throw ConfigError("environment.python is '", path,
                        "', and this process has begun its one interpreter with '", running,
                        "': let environments of another run in workers (embedded false)");
    if (version != linked)
      throw ConfigError("environment.embedded is true, and '", path, "' is Python ", version,
                        ", while this program has the library of Python ", linked,
                        ": configure it with -DDVLA_PYTHON=", path,
                        ", or let environments run in workers (embedded false)");
    if (!running.empty()) return;
    std::promise<std::string> begun;
    auto why = begun.get_future();
    std::thread([path = path, &begun] { self().live(path, begun); }).detach();
    if (const std::string said = why.get(); !said.empty())
      throw ConfigError("Python does not start with '", path, "': ", said);
    running = path;
    given = python;
  }

  /// What Python raised last, as an Error. In its thread.
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

  /// At exit it ends before the libraries do that are loaded now. Again where more have been.
  static void end_at_exit() {
    static unsigned long long known = 0;
    unsigned long long loaded = 0;
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* data) {
          *static_cast<unsigned long long*>(data) = info->dlpi_adds;
          return 1;
        },
        &loaded);
    if (std::exchange(known, loaded) != loaded) std::atexit([] { self().end(); });
  }

 private:
  static EmbeddedPython& self() {
    static auto* const one = new EmbeddedPython;  // its thread may outlive what is torn down at exit
    return *one;
  }
  static std::pair<std::string, std::string> asked(const std::string& python) {
    const auto said = io::run_child(
        {python, "-c", "import platform, sys; print(platform.python_version(), sys.executable, end='')"}, {},
        std::chrono::seconds(30));
    const std::size_t blank = said.out.find(' ');
    if (said.exit_code != 0 || blank == std::string::npos)
      throw ConfigError("environment.python is '", python,
                        "', which does not say what Python it is: ", said.err);
    return {said.out.substr(blank + 1), said.out.substr(0, blank)};
  }

  void live(const std::string& path, std::promise<std::string>& begun) {
    PyPreConfig before;
    PyPreConfig_InitPythonConfig(&before);
    before.configure_locale = before.coerce_c_locale = 0;  // the program's
    before.utf8_mode = 1;
    PyConfig config;
    PyStatus status = Py_PreInitialize(&before);
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    if (!PyStatus_Exception(status))
      status = PyConfig_SetBytesString(&config, &config.executable, path.c_str());
    if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
      return begun.set_value(status.err_msg ? status.err_msg : "it gives no reason");
    struct sigaction own {};  // its module takes SIGINT where nobody has
    ::sigaction(SIGINT, nullptr, &own);
    Object(PyImport_ImportModule("signal")).reset();
    ::sigaction(SIGINT, &own, nullptr);
    begun.set_value("");
    for (;;) {
      std::function<void()> work;
      PyThreadState* const kept = PyEval_SaveThread();
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return ended_ || !work_.empty(); });
        if (!work_.empty()) {
          work = std::move(work_.front());
          work_.pop_front();
        }
      }
      PyEval_RestoreThread(kept);
      if (!work) break;
      work();
    }
    Py_FinalizeEx();
    const std::lock_guard lock(mutex_);
    finalized_ = true;
    changed_.notify_all();
  }
  /// Not for ever: a call may hang, or a thread that Python waits for.
  void end() {
    std::unique_lock lock(mutex_);
    if (std::exchange(ended_, true)) return;
    changed_.notify_all();
    changed_.wait_for(lock, std::chrono::seconds(5), [&] { return finalized_; });
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> work_;  ///< at most a message and an end of each batch
  bool ended_ = false, finalized_ = false;
};

namespace detail {

/// One batch's worker.py.
class PythonService : public ApartService {
 public:
  explicit PythonService(const PythonSeat& seat) : state_(std::make_shared<State>(seat)) {
    EmbeddedPython::start(seat.python);
  }
  ~PythonService() override {
    try {
      EmbeddedPython::post([state = state_] {
        const Object embedded(state->embedded), method(PyUnicode_FromString("close"));
        if (embedded && !Object(PyObject_CallMethodNoArgs(embedded.get(), method.get()))) PyErr_Clear();
      });
    } catch (const Error&) {  // Python has ended
    }
  }
  void send(const std::string& text) override {
    EmbeddedPython::post([state = state_, text] {
      std::string answer, why;
      try {
        answer = answered(*state, text);
      } catch (const Error& error) {
        why = error.what();
      }
      EmbeddedPython::end_at_exit();
      const std::lock_guard lock(state->mutex);
      state->answer = {std::move(answer), std::move(why)};
      state->changed.notify_all();
    });
  }
  std::optional<std::string> receive(std::chrono::steady_clock::time_point until) override {
    std::unique_lock lock(state_->mutex);
    if (!state_->changed.wait_until(lock, until, [&] { return state_->answer.has_value(); }))
      return std::nullopt;
    const auto [answer, why] = *std::exchange(state_->answer, std::nullopt);
    if (!why.empty()) throw Error(why);
    return answer;
  }

 private:
  using Object = EmbeddedPython::Object;
  struct State {
    explicit State(PythonSeat given) : seat(std::move(given)) {}
    const PythonSeat seat;
    PyObject* embedded = nullptr;  ///< Python's thread alone; made for the first message
    std::mutex mutex{};
    std::condition_variable changed{};
    std::optional<std::pair<std::string, std::string>> answer{};  ///< and why there is none
  };

  static Object made(const PythonSeat& seat) {
    const Object globals(PyDict_New()), name(PyUnicode_FromString("dvla_worker"));
    PyDict_SetItemString(globals.get(), "__builtins__", PyEval_GetBuiltins());
    PyDict_SetItemString(globals.get(), "__name__", name.get());
    const Object code(Py_CompileString(std::string(python_worker).c_str(), "<string>", Py_file_input));
    const Object done(code ? PyEval_EvalCode(code.get(), globals.get(), globals.get()) : nullptr);
    if (!done) EmbeddedPython::raise("worker.py does not run");
    const Object pool(PyMemoryView_FromMemory(reinterpret_cast<char*>(seat.pool.data()),
                                              static_cast<Py_ssize_t>(seat.pool.size()), PyBUF_WRITE));
    Object embedded(pool ? PyObject_CallFunction(PyDict_GetItemString(globals.get(), "Embedded"), "sO",
                                                 seat.told.c_str(), pool.get())
                         : nullptr);
    if (!embedded) EmbeddedPython::raise("the environment cannot be embedded");
    return embedded;
  }
  static std::string answered(State& state, const std::string& text) {
    if (state.embedded == nullptr) state.embedded = made(state.seat).release();
    const Object message(PyBytes_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.size()))),
        method(PyUnicode_FromString("answer"));
    const Object answer(PyObject_CallMethodObjArgs(state.embedded, method.get(), message.get(), nullptr));
    char* bytes = nullptr;
    Py_ssize_t size = 0;
    if (!answer || PyBytes_AsStringAndSize(answer.get(), &bytes, &size) != 0)
      EmbeddedPython::raise("an embedded environment fails");
    return {bytes, static_cast<std::size_t>(size)};
  }

  const std::shared_ptr<State> state_;
};

inline const bool python_is_embedded =
    (embed_python = [](const PythonSeat& seat) -> std::unique_ptr<ApartService> {
      return std::make_unique<PythonService>(seat);
    }) != nullptr;

}  // namespace detail
}  // namespace dvla
