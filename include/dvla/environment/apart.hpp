// Apart: environments in processes of their own, for simulators that hang, crash or hold a lock of their language.
// A worker is a child with some of the batch's rows. It has a socket as descriptor 3, the environment pool as
// descriptor 4, and as descriptor 5 what ends it when this process does: commands and answers are one line of JSON
// each, what rows show and are told to do lies in the pool, so observations are born where the model reads them.
// A worker that does not answer in time, answers nonsense or is gone costs its rows, which fail as rows do
// (rows.hpp), and is started anew at once, beside the others. Until it is ready training's resets of its rows fail,
// too; others (evaluations) wait for it. Design: "Rows that fail". A machinery derives from
// ApartBatch; what a child does is told at ApartStart.
// Of fields elsewhere than in the pool (evaluations, demonstrations) the rows of the call are copied.
//
// Legend: N rows of the batch, C control steps a chunk, A action dimensions, P proprioception.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/core/json.hpp"
#include "dvla/environment/apart_service.hpp"
#include "dvla/environment/concept.hpp"
#include "dvla/io/child_process.hpp"
#include "dvla/memory/host_pool.hpp"

namespace dvla {

/// The first thing that a child is told. It has rows [first, first + rows) of the batch. The pool is `pool_bytes`
/// from offset 0 of descriptor 4. A child whose socket is closed is to end.
struct ApartStart {
  std::int64_t call = 0, first = 0, rows = 0;
  std::uint64_t pool_bytes = 0;
};
/// What it answers: the same of every worker of a batch. An error is one sentence, and there is no spec.
struct ApartReady {
  std::int64_t call = 0;
  std::optional<EnvironmentSpec> spec{};
  std::string same{};  ///< whatever else the workers must have in common
  std::string error{};
  bool interrupted = false;  ///< as ApartAnswer's
};

/// What a child is to do with these rows, numbers of the batch: `reset` and `step` them, say what a scripted
/// expert would do in a row (`expert`), or draw it into frames[0], [height, width, 3] (`render`). Fields are as in
/// Outcome and Transition, contiguous, [N, ...]: given is the offset of row 0, or -1 where there is none.
enum class ApartCall : std::uint8_t { reset, step, expert, render };
template <>
inline constexpr auto enum_names<ApartCall> = std::to_array<std::string_view>({"reset", "step", "expert",
                                                                               "render"});
struct ApartCommand {
  std::int64_t call = 0;  ///< to be repeated in the answer
  ApartCall kind = ApartCall::reset;
  std::int64_t chunk = 0;  ///< C, of a step
  std::vector<std::int64_t> rows{};
  std::vector<std::uint64_t> seeds{};  ///< [rows] Start::seed and Start::case_index, of a reset
  std::vector<std::int64_t> cases{};
  bool training = false;  ///< Start::training of all of them
  std::vector<std::int64_t> frames{};
  std::int64_t proprioception = -1, instruction = -1;
  std::int64_t action = -1, reward = -1, terminated = -1, truncated = -1;
  std::int64_t height = 0, width = 0;
};

struct ApartFailure {
  std::int64_t row = 0;
  std::string why{};
};
/// Of any command. A row that failed alone says so here; the child goes on.
struct ApartAnswer {
  std::int64_t call = 0;
  std::int64_t made = 0;               ///< transitions
  std::vector<std::int64_t> solved{};  ///< of the command's rows, those whose episode has been solved
  std::vector<float> action{};         ///< [A] the expert's
  std::vector<ApartFailure> failed{};
  bool interrupted = false;  ///< somebody wants the whole program to end: it is sent SIGINT, once
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::ApartStart, call, first, rows, pool_bytes);
BOOST_HANA_ADAPT_STRUCT(dvla::ApartReady, call, spec, same, error, interrupted);
BOOST_HANA_ADAPT_STRUCT(dvla::ApartCommand, call, kind, chunk, rows, seeds, cases, training, frames,
                        proprioception, instruction, action, reward, terminated, truncated, height, width);
BOOST_HANA_ADAPT_STRUCT(dvla::ApartFailure, row, why);
BOOST_HANA_ADAPT_STRUCT(dvla::ApartAnswer, call, made, solved, action, failed, interrupted);

namespace dvla {

struct ApartOptions {
  std::vector<std::string> program;  ///< and its arguments; found on PATH
  std::function<std::unique_ptr<ApartService>(std::span<std::byte> pool)>
      service{};          ///< instead of a program
  std::int64_t rows = 1;  ///< N
  int workers = 1;
  /// Of a step (or an expert's word, or a picture), a reset, and a start, which a reset may have to wait for first.
  /// The last two together are to be less than run.step_deadline_s, beyond which the whole run ends.
  std::chrono::milliseconds step_deadline{60'000}, reset_deadline{60'000}, start_deadline{120'000};
};

namespace detail {

/// One child, alive or not. What it says of its end begins with "its process".
class ApartWorker {
 public:
  using Clock = std::chrono::steady_clock;

  ApartWorker() = default;
  ~ApartWorker() { (void)end(); }
  ApartWorker(const ApartWorker&) = delete;
  ApartWorker& operator=(const ApartWorker&) = delete;

  /// Started, and not ended by end(); it may have died since.
  bool alive() const { return child_ > 0 || service_; }
  bool died() const {
    siginfo_t gone{};
    return child_ > 0 &&
           ::waitid(P_PID, static_cast<id_t>(child_), &gone, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           gone.si_pid != 0;
  }
  pid_t id() const { return child_; }
  int socket() const { return socket_.get(); }

  void start(std::unique_ptr<ApartService> service) { service_ = std::move(service); }
  /// Throws Error where it cannot be started. `pool`: a descriptor.
  void start(const std::vector<std::string>& program, int pool) {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0)
      io::detail::throw_errno("make a socket for", program[0]);
    socket_ = io::detail::FileDescriptor(ends[0]);
    const io::detail::FileDescriptor near(ends[1]);
    // Away from the numbers that the child is to know them by.
    const io::detail::FileDescriptor far(::fcntl(near.get(), F_DUPFD_CLOEXEC, 10)),
        mapping(::fcntl(pool, F_DUPFD_CLOEXEC, 10));
    if (!far.is_open() || !mapping.is_open()) io::detail::throw_errno("open descriptors for", program[0]);
    // A pipe whose other end is this process's alone: the kernel kills the child, and what it has started, when that closes, however.
    std::array<int, 2> leash{};
    if (::pipe2(leash.data(), O_CLOEXEC) != 0) io::detail::throw_errno("make a pipe for", program[0]);
    const io::detail::FileDescriptor low(leash[0]);
    leash_ = io::detail::FileDescriptor(leash[1]);
    const io::detail::FileDescriptor lease(::fcntl(low.get(), F_DUPFD_CLOEXEC, 10));
    const int code = io::detail::spawn(
        child_, program, {},
        {{STDOUT_FILENO, STDERR_FILENO}, {3, far.get()}, {4, mapping.get()}, {5, lease.get()}});
    if (code != 0) {
      child_ = -1;
      io::detail::throw_errno("run the program", program[0], code);
    }
    if (::fcntl(lease.get(), F_SETOWN, -child_) != 0 || ::fcntl(lease.get(), F_SETSIG, SIGKILL) != 0 ||
        ::fcntl(lease.get(), F_SETFL, O_ASYNC) != 0) {
      const int why = errno;
      (void)end();
      io::detail::throw_errno("tie to this process the program", program[0], why);
    }
  }
  /// Throws Error where it does not take it.
  void send(const std::string& text) {
    if (service_) return service_->send(text);
    if (::send(socket(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return;
    if (errno == EPIPE || errno == ECONNRESET) throw Error(end(std::chrono::milliseconds(200)));
    throw Error(std::string("its process took no command: ") + std::strerror(errno));
  }
  /// The answer to `call`; nothing if none comes before `until`. Throws Error where what comes is none.
  template <class Answer>
  std::optional<Answer> receive(std::int64_t call, Clock::time_point until) {
    if (service_) {
      const auto text = service_->receive(until);
      return text ? std::optional(answer_to<Answer>(call, *text)) : std::nullopt;
    }
    pollfd answered{socket(), POLLIN, 0};
    int ready = 0;
    do {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
      ready = ::poll(&answered, 1, static_cast<int>(std::max<std::int64_t>(left, 0)));
    } while (ready < 0 && errno == EINTR);  // a handler asks the lanes to stop; this call has its deadline
    if (ready <= 0) return std::nullopt;
    text_.resize(std::size_t{1} << 18);
    ssize_t size = -1;
    do size = ::recv(socket(), text_.data(), text_.size(), MSG_TRUNC);
    while (size < 0 && errno == EINTR);
    if (size <= 0) throw Error(end(std::chrono::milliseconds(200)));
    if (static_cast<std::size_t>(size) > text_.size())
      throw Error("its process answered with " + std::to_string(size) + " bytes");
    return answer_to<Answer>(call, {text_.data(), static_cast<std::size_t>(size)});
  }
  /// Nothing of it is left when this returns: how it ended, by itself within `patience` or killed.
  std::string end(std::chrono::milliseconds patience = {}) {
    service_ = nullptr;
    if (child_ <= 0) return "";
    bool by_itself = died();
    for (const auto until = Clock::now() + patience; !by_itself && Clock::now() < until; by_itself = died())
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    ::kill(-child_, SIGKILL);  // and what it has started
    int status = 0;
    while (::waitpid(child_, &status, 0) < 0 && errno == EINTR) {
    }
    child_ = -1;
    socket_.close();
    leash_.close();
    return !by_itself          ? "its process closed its socket and was killed"
           : WIFEXITED(status) ? "its process ended with exit code " + std::to_string(WEXITSTATUS(status))
                               : "its process ended by signal " + std::to_string(WTERMSIG(status)) + " (" +
                                     strsignal(WTERMSIG(status)) + ")";
  }

 private:
  template <class Answer>
  static Answer answer_to(std::int64_t call, std::string_view text) {
    auto answer = parse_json<Answer>(text, "its process gave an answer that is none");
    if (answer.call != call)
      throw Error("its process answered call " + std::to_string(answer.call) + ", not " +
                  std::to_string(call));
    return answer;
  }

  pid_t child_ = -1;
  std::unique_ptr<ApartService> service_;
  io::detail::FileDescriptor socket_, leash_;
  std::vector<char> text_;
};

}  // namespace detail

/// The machinery of rows that live apart: all that EnvironmentMachinery asks for. Calls about different rows may
/// be under way at once; one waits for another that has rows of the same worker. A machinery's constructor
/// `(knobs, pool)` makes the options and hands the pool on.
class ApartBatch {
 public:
  /// Starts all workers, who say what the environment is. `pool` must outlive this and be one that a child can be
  /// given, as DualPool's is; throws ConfigError otherwise, and where a worker does not start.
  ApartBatch(ApartOptions options, std::pmr::memory_resource& pool)
      : options_(checked(std::move(options))),
        pool_(shared(pool)),
        states_(static_cast<std::size_t>(options_.rows)),
        workers_(static_cast<std::size_t>(options_.workers)) {
    std::vector<Call> calls;
    for (std::int64_t w = 0; w < options_.workers; ++w) calls.push_back({w});
    start(calls, true);
    for (const Call& each : calls)
      if (!each.why.empty()) throw ConfigError("an environment's worker cannot be started: " + each.why);
  }

  std::int64_t size() const { return options_.rows; }
  std::int64_t horizon() const { return spec_->horizon; }
  const ObservationSpec& observation_spec() const { return spec_->observation; }
  const ActionSpec& action_spec() const { return spec_->action; }
  std::int64_t cases() const { return spec_->cases; }
  bool succeeded(std::int64_t row) const { return states_.at(static_cast<std::size_t>(row)).solved; }

  void reset(Rows& rows, std::span<const Start> starts, const Observation& next) {
    exchange(rows, starts, [&](ApartCommand& command, Borrowed& fields) {
      command.training = std::ranges::all_of(starts, &Start::training);
      show(command, next, fields);
    });
  }

  std::int64_t step(Rows& rows, Field<float> action, const Outcome& outcome) {
    return exchange(rows, {}, [&](ApartCommand& command, Borrowed& fields) {
      command.kind = ApartCall::step;
      command.chunk = action.extents()[1];
      command.action = fields.place(action);
      command.reward = fields.place(outcome.reward);
      command.terminated = fields.place(outcome.terminated);
      command.truncated = fields.place(outcome.truncated);
      show(command, outcome.next, fields);
    });
  }

  /// What the scripted expert would do. Throws Error with the child's reason, and where the child is gone.
  void expert(std::int64_t row, std::span<float> action) {
    const auto said = ask_about(row, {.kind = ApartCall::expert}, "its expert").action;
    if (said.size() != action.size())
      throw Error("its expert's action has " + std::to_string(said.size()) + " numbers, and not " +
                  std::to_string(action.size()));
    std::ranges::copy(said, action.begin());
  }
  /// [height, width, 3]. Throws as expert() does.
  void render(std::int64_t row, int width, int height, std::span<std::uint8_t> rgb) {
    Field<std::uint8_t> picture({1, height, width, 3});
    picture.place(rgb.data());
    const std::array<std::int64_t, 1> only{0};
    Borrowed fields(pool_, only);
    (void)ask_about(
        row, {.kind = ApartCall::render, .frames = {fields.place(picture)}, .height = height, .width = width},
        "a picture");
  }

  /// Of the workers that have been started and not ended. Between two calls.
  std::vector<pid_t> processes() const {
    std::vector<pid_t> all;
    for (const Worker& each : workers_)
      if (each.child.id() > 0) all.push_back(each.child.id());
    return all;
  }

 private:
  using Clock = detail::ApartWorker::Clock;

  struct Worker {
    std::mutex mutex{};
    detail::ApartWorker child{};
    std::int64_t calls = 0;                           ///< that it has had
    std::optional<Clock::time_point> starts_until{};  ///< its first answer is to come
    bool ready() const { return child.alive() && !starts_until; }
  };
  struct RowState {
    std::int64_t steps = 0;  ///< of its episode, as far as they were asked for
    bool solved = false;
    std::string lost{};  ///< why its episode is gone, where its worker is
  };
  /// Of one worker, in one call of this.
  struct Call {
    std::int64_t worker;
    std::span<const std::int64_t> rows{};
    std::size_t first = 0;  ///< of `rows`, among the call's
    ApartCommand command{};
    std::optional<ApartReady> ready{};
    std::optional<ApartAnswer> answer{};
    std::string why{};  ///< it did not start, or gave no answer
  };

  /// The fields of a call, as offsets into the pool. Where one lies elsewhere, a block of the pool stands in for
  /// it: these rows are copied there, and back at the end.
  class Borrowed {
   public:
    Borrowed(HostPool& pool, std::span<const std::int64_t> rows) : pool_(pool), rows_(rows) {}
    ~Borrowed() {
      for (const Block& each : blocks_) {
        copy(each.original, each.block, each.row_bytes);
        pool_.deallocate(each.block, each.bytes, record_alignment);
      }
    }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;

    template <class Element>
    std::int64_t place(const Field<Element>& field) {
      if (field.absent()) return -1;
      auto* at = reinterpret_cast<std::byte*>(field.data());
      if (!pool_.contains(at)) {
        const std::size_t bytes = field.bytes();
        auto* const block = static_cast<std::byte*>(pool_.allocate(bytes, record_alignment));
        blocks_.push_back({at, block, bytes, bytes / static_cast<std::size_t>(field.extents()[0])});
        copy(block, at, blocks_.back().row_bytes);
        at = block;
      }
      return at - pool_.region().data();
    }

   private:
    struct Block {
      std::byte *original, *block;
      std::size_t bytes, row_bytes;
    };
    void copy(std::byte* to, const std::byte* from, std::size_t row_bytes) const {
      for (const std::int64_t row : rows_)
        std::memcpy(to + static_cast<std::size_t>(row) * row_bytes,
                    from + static_cast<std::size_t>(row) * row_bytes, row_bytes);
    }
    HostPool& pool_;
    std::span<const std::int64_t> rows_;
    std::vector<Block> blocks_;
  };

  static ApartOptions checked(ApartOptions options) {
    if ((options.program.empty() && !options.service) || options.rows < 1 || options.workers < 1 ||
        options.workers > options.rows)
      throw ConfigError(
          "environments apart: a program, at least one row, and from 1 to as many workers are needed");
    constexpr std::int64_t most = 4096;  // a command and its answer are one message each
    if (!options.service && options.rows > most * options.workers)
      throw ConfigError("environments apart: ", options.workers, " workers have at most ",
                        most * options.workers, " rows, and ", options.rows,
                        " are asked for; start more workers");
    return options;
  }
  static HostPool& shared(std::pmr::memory_resource& pool) {
    auto* const host = dynamic_cast<HostPool*>(&pool);
    if (host == nullptr || host->descriptor() < 0)
      throw ConfigError(
          "environments apart write into the environment pool, and this one cannot be given to a child "
          "process; choose DualPool");
    return *host;
  }
  RowState& state(std::int64_t row) { return states_[static_cast<std::size_t>(row)]; }
  Worker& worker(const Call& call) { return workers_[static_cast<std::size_t>(call.worker)]; }
  std::int64_t first_of(std::int64_t worker) const { return options_.rows * worker / options_.workers; }

  static void show(ApartCommand& command, const Observation& next, Borrowed& fields) {
    for (const auto& frames : next.frames)
      if (!frames.absent()) command.frames.push_back(fields.place(frames));
    command.proprioception = fields.place(next.proprioception);
    command.instruction = fields.place(next.instruction);
  }

  /// A reset, where there are starts, or a step; `place` says where its fields lie. Returns the transitions made.
  template <class Place>
  std::int64_t exchange(Rows& rows, std::span<const Start> starts, Place place) {
    rows.check("environments apart", size());
    const bool resets = !starts.empty();
    std::vector<Call> calls = calls_of(rows);
    std::vector<std::unique_lock<std::mutex>>
        locks;  // in ascending order, so that no two calls wait in a ring
    for (const Call& each : calls) locks.emplace_back(worker(each).mutex);
    if (resets) {
      for (const std::int64_t row : rows.indices()) state(row) = {};
      start(calls, !std::ranges::all_of(starts, &Start::training));
    }
    Borrowed fields(pool_, rows.indices());
    ApartCommand common;
    place(common, fields);  // before any of them is told: no child is at work when this throws
    std::vector<Call*> asked;
    for (Call& each : calls) {
      if (!worker(each).ready()) continue;
      each.answer.reset();
      each.command = common;
      each.command.call = ++worker(each).calls;
      for (std::size_t i = 0; i < each.rows.size(); ++i) {
        if (!state(each.rows[i]).lost.empty()) continue;
        each.command.rows.push_back(each.rows[i]);
        if (!resets) continue;
        each.command.seeds.push_back(starts[each.first + i].seed);
        each.command.cases.push_back(starts[each.first + i].case_index);
      }
      if (!each.command.rows.empty()) ask(each, json_text(each.command), asked);
    }
    wait(asked, resets ? options_.reset_deadline : options_.step_deadline, resets ? "its reset" : "a step");
    std::int64_t made = 0;
    for (Call& each : calls) made += conclude(each, rows, resets);
    return made;
  }

  /// One row's worker, outside of a batch's calls. Throws Error where it does not do it.
  ApartAnswer ask_about(std::int64_t row, ApartCommand command, const std::string& what) {
    Call call{worker_of(row)};
    Worker& own = worker(call);
    const std::lock_guard lock(own.mutex);
    if (!own.ready()) throw Error(state(row).lost);
    command.rows = {row};
    command.call = ++own.calls;
    call.command = std::move(command);
    std::vector<Call*> asked;
    ask(call, json_text(call.command), asked);
    wait(asked, options_.step_deadline, what);
    if (!call.answer) {
      lose(call);
      throw Error(state(row).lost);
    }
    if (!call.answer->failed.empty()) throw Error(call.answer->failed.front().why);
    return *call.answer;
  }
  std::int64_t worker_of(std::int64_t row) const {
    std::int64_t w = 0;
    while (first_of(w + 1) <= row) ++w;
    return w;
  }

  std::vector<Call> calls_of(const Rows& rows) const {
    std::vector<Call> calls;
    for (std::size_t i = 0; i < rows.indices().size();) {
      std::int64_t w = calls.empty() ? 0 : calls.back().worker + 1;
      while (first_of(w + 1) <= rows.indices()[i]) ++w;
      std::size_t end = i;
      while (end < rows.indices().size() && rows.indices()[end] < first_of(w + 1)) ++end;
      calls.push_back({.worker = w, .rows = rows.indices().subspan(i, end - i), .first = i});
      i = end;
    }
    return calls;
  }

  /// Has those of these workers begun that are not alive, and takes what those that were say of themselves. Waits
  /// for that if `patient`, or if nobody else could go on.
  void start(std::vector<Call>& calls, bool patient) {
    for (Call& each : calls) begin(each);
    patient = patient || std::ranges::none_of(calls, [&](const Call& each) { return worker(each).ready(); });
    for (Call& each : calls) {
      Worker& own = worker(each);
      if (!own.starts_until) continue;
      try {
        each.ready = own.child.receive<ApartReady>(own.calls, patient ? *own.starts_until : Clock::now());
        if (!each.ready && Clock::now() < *own.starts_until) {
          each.why = "its process is still being started";
          continue;
        }
        if (!each.ready) give_up(each, late("its start", options_.start_deadline));
      } catch (const Error& error) {
        give_up(each, error.what());
      }
      own.starts_until.reset();
      if (!each.ready) continue;
      if (each.ready->interrupted) interrupt();
      if (!each.ready->spec) {
        each.why = each.ready->error.empty() ? "it does not say what it shows and takes" : each.ready->error;
        (void)own.child.end();
      } else if (!spec_) {
        spec_ = std::move(each.ready->spec);
        same_ = each.ready->same;
      } else if (json_text(*each.ready->spec) != json_text(*spec_) || each.ready->same != same_) {
        give_up(each, "its environment is not that of the other workers");
      }
    }
  }
  /// Does not wait: a program is started and told, and answers in its time.
  void begin(Call& call) {
    Worker& own = worker(call);
    if (own.ready() && own.child.died()) (void)own.child.end();
    if (own.child.alive()) return;
    try {
      if (options_.service)
        own.child.start(options_.service(pool_.region()));
      else
        own.child.start(options_.program, pool_.descriptor());
      own.child.send(json_text(ApartStart{.call = ++own.calls,
                                          .first = first_of(call.worker),
                                          .rows = first_of(call.worker + 1) - first_of(call.worker),
                                          .pool_bytes = pool_.region().size()}));
      own.starts_until = Clock::now() + options_.start_deadline;
    } catch (const Error& error) {
      give_up(call, error.what());
    }
  }

  void ask(Call& call, const std::string& text, std::vector<Call*>& asked) {
    try {
      worker(call).child.send(text);
      asked.push_back(&call);
    } catch (const Error& error) {
      give_up(call, error.what());
    }
  }
  void give_up(Call& call, std::string why) {
    call.why = std::move(why);
    if (!worker(call).child.end().empty()) call.why += ", and was killed";
  }
  static std::string late(const std::string& what, std::chrono::milliseconds limit) {
    return "its process did not come back from " + what + " within " + std::to_string(limit.count()) + " ms";
  }
  /// For all of their answers, until the deadline; whoever has none then, or gives none, is killed.
  void wait(const std::vector<Call*>& asked, std::chrono::milliseconds limit, const std::string& what) {
    const auto until = Clock::now() + limit;
    for (Call* each : asked) {
      try {
        each->answer = worker(*each).child.receive<ApartAnswer>(each->command.call, until);
        if (!each->answer) give_up(*each, late(what, limit));
        if (each->answer && each->answer->interrupted) interrupt();
      } catch (const Error& error) {
        give_up(*each, error.what());
      }
    }
  }

  void interrupt() {
    if (!interrupted_.exchange(true)) ::kill(::getpid(), SIGINT);
  }
  /// Its worker is gone, if it says why, and another one is begun.
  void lose(Call& call) {
    if (call.why.empty()) return;
    const std::string who = " (worker " + std::to_string(call.worker) + ")";
    for (std::int64_t row = first_of(call.worker); row < first_of(call.worker + 1); ++row)
      if (state(row).lost.empty()) state(row).lost = call.why + who;
    begin(call);
  }
  std::int64_t conclude(Call& call, Rows& rows, bool resets) {
    if (!call.answer) {
      lose(call);
      for (const std::int64_t row : call.rows)
        rows.failures().add(row, state(row).lost + (resets ? ""
                                                           : ", " + std::to_string(state(row).steps) +
                                                                 " control steps into its episode"));
      return 0;
    }
    for (const std::int64_t row : call.rows) {
      state(row).steps += call.command.chunk;
      state(row).solved = std::ranges::find(call.answer->solved, row) != call.answer->solved.end();
      if (!state(row).lost.empty())
        rows.failures().add(row, state(row).lost);  // its worker has been replaced
    }
    for (const ApartFailure& each : call.answer->failed)
      if (std::ranges::binary_search(call.rows, each.row)) rows.failures().add(each.row, each.why);
    return call.answer->made;
  }

  const ApartOptions options_;
  HostPool& pool_;
  std::optional<EnvironmentSpec> spec_;  ///< as the first worker said
  std::string same_;
  std::vector<RowState> states_;
  std::deque<Worker> workers_;
  std::atomic<bool> interrupted_{false};
};

static_assert(EnvironmentMachinery<ApartBatch>);

}  // namespace dvla
