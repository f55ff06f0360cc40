// What the leader of a job asks of the rollouts outside of batches: to play an evaluation's episodes, to
// demonstrate, to show a decision for the self-test, to draw pictures. Paper: rollouts hold the environments.
// A request lies in the job's store, where the rollouts look for it while they wait for the leader
// (Job::begin_together, end_together); so do the answers. What is large (weights, records, pictures) goes over
// a channel of that request. A leader that rolls out does its own share in the calling thread; one process is
// a leader and the only rollout, which asks nobody. Who is lost before training begins ends the run; later it
// is named, and the others do its share.
#pragma once

#include <algorithm>
#include <array>
#include <boost/hana/adapt_struct.hpp>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <memory_resource>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/json.hpp"
#include "dvla/data_plane/wire.hpp"
#include "dvla/handoff/stop.hpp"
#include "dvla/pipeline/job.hpp"
#include "dvla/pipeline/rollout_worker.hpp"
#include "dvla/pipeline/watch.hpp"

namespace dvla {

enum class RequestKind : std::uint8_t { weights, evaluation, demonstrations, probe, pictures };
template <>
inline constexpr auto enum_names<RequestKind> =
    std::to_array<std::string_view>({"weights", "evaluation", "demonstrations", "probe", "pictures"});
template <>
inline constexpr auto enum_names<Decoding> = std::to_array<std::string_view>({"sample", "mode"});

struct Request {
  RequestKind kind = RequestKind::weights;
  std::vector<Share> shares{};  ///< of episodes, by rollout; a count of 0: it is not asked
  std::vector<Start> starts{};  ///< evaluation: what the shares are shares of
  std::int64_t first = 0;       ///< the number of the first of those episodes
  Decoding decoding = Decoding::mode;
  double noise = 0;          ///< demonstrations
  std::int64_t side = 0;     ///< of a picture, pixels
  std::int64_t version = 0;  ///< weights
};
struct Answer {
  std::string error{};                       ///< not empty: it could not
  bool stopped = false;                      ///< it was asked to stop meanwhile
  std::vector<EvaluatedEpisode> episodes{};  ///< evaluation
  std::int64_t solved = 0;                   ///< demonstrations
  std::vector<std::int64_t> rows{};          ///< probe: those that did not fail
};

}  // namespace dvla

BOOST_HANA_ADAPT_STRUCT(dvla::Share, first, count);
BOOST_HANA_ADAPT_STRUCT(dvla::EvaluatedEpisode, start, instruction, success, failed);
BOOST_HANA_ADAPT_STRUCT(dvla::Request, kind, shares, starts, first, decoding, noise, side, version);
BOOST_HANA_ADAPT_STRUCT(dvla::Answer, error, stopped, episodes, solved, rows);

namespace dvla {

/// How many squares wide an environment's pictures for people are: its `views`, or one.
template <class Environment>
inline constexpr int views_of = 1;
template <class Environment>
requires requires { Environment::views; }
inline constexpr int views_of<Environment> = Environment::views;

/// What a rollout has done, or said of it: an answer, and what some rows of its environment have recorded.
template <class Decision>
struct Recorded {
  Answer answer{};
  std::int64_t episodes = 0;  ///< in the first columns
  std::unique_ptr<OwnedRecord<Transition>> transition{};
  std::unique_ptr<OwnedRecord<Decision>> decision{};  ///< the self-test's
};

/// Of a rank that leads, rolls out, or both; while no lane runs. `Parts`: RankParts.
template <class Parts>
class Requests {
  using Environment = typename Parts::Environment;
  using Model = typename Parts::Model;
  using Decision = typename Parts::Decision;
  using Done = Recorded<Decision>;

 public:
  /// `parts` must outlive this.
  explicit Requests(Parts& parts) : parts_(parts), job_(parts.job) {}

  // ---- The leader's. What takes a `stop`, which may be null, throws Stopped once it asks.
  /// The trainer's weights, as `version`, to every rollout.
  void install(std::int64_t version) {
    parts_.gather();
    if (job_.rolls_out()) parts_.install(version);
    Request request{.kind = RequestKind::weights, .version = version};
    deal(request, environments());
    if (job_.rolls_out()) request.shares[place()] = {};
    ask(request, nullptr, [&](Done&, Share, Channel* to) {
      if (to)
        for (const WeightUnit& unit : parts_.model.units()) to->send(unit.values, limit());
    });
  }
  /// Each of these episodes, played once.
  std::vector<EvaluatedEpisode> evaluate(std::span<const Start> episodes, Decoding decoding,
                                         const stop_flag* stop) {
    std::vector<EvaluatedEpisode> all(episodes.size());
    std::vector<std::size_t> open(episodes.size());  // of which nothing has come yet
    std::iota(open.begin(), open.end(), std::size_t{0});
    while (!open.empty()) {
      Request request{
          .kind = RequestKind::evaluation, .first = std::ssize(all) - std::ssize(open), .decoding = decoding};
      for (std::int64_t i = 0, dealt = deal(request, std::ssize(open)); i < dealt; ++i)
        request.starts.push_back(episodes[open[static_cast<std::size_t>(i)]]);
      constexpr auto played = std::numeric_limits<std::size_t>::max();
      ask(request, stop, [&](Done& done, Share share, Channel*) {
        if (std::ssize(done.answer.episodes) != share.count)
          throw PeerError("a rollout was asked for " + std::to_string(share.count) + " episodes and gave " +
                          std::to_string(done.answer.episodes.size()));
        for (std::size_t i = 0; i < done.answer.episodes.size(); ++i)
          all[std::exchange(open[static_cast<std::size_t>(share.first) + i], played)] =
              done.answer.episodes[i];
      });
      std::erase(open, played);
    }
    return all;
  }
  /// The scripted expert's demonstrations 0 to `count`.
  std::vector<Done> demonstrate(std::int64_t count, double noise, const stop_flag* stop) {
    std::vector<Done> all;
    for (std::int64_t first = 0; first < count;) {
      Request request{.kind = RequestKind::demonstrations, .first = first, .noise = noise};
      first += deal(request, count - first);
      ask(request, stop, [&](Done& done, Share, Channel*) { all.push_back(std::move(done)); });
    }
    return all;
  }
  /// First decisions of fresh episodes, of one of the rollouts.
  Done probe(const stop_flag* stop) {
    Done shown;
    Request request{.kind = RequestKind::probe};
    choose_one(request, environments());
    ask(request, stop, [&](Done& done, Share, Channel*) { shown = std::move(done); });
    return shown;
  }
  /// One pass of fresh episodes in at most `columns` rows of one rollout: `on_picture(control step, rgb)` at the
  /// start and after every control step, rgb [side, columns * views_of * side, 3].
  template <class OnPicture>
  void draw(std::int64_t columns, std::int64_t side, Decoding decoding, const stop_flag* stop,
            OnPicture on_picture) {
    Request request{.kind = RequestKind::pictures, .decoding = decoding, .side = side};
    choose_one(request, columns);
    ask(request, stop, [&](Done&, Share share, Channel* from) {
      std::vector<std::uint8_t> rgb(
          static_cast<std::size_t>(3 * side * side * views_of<Environment> * share.count));
      if (!from) draw_here(request, share, stop, on_picture);
      for (std::int64_t step = 0; from && step <= parts_.spec.horizon; ++step) {
        throw_if_stopped(stop, "the animation");
        from->receive(std::as_writable_bytes(std::span(rgb)), limit());
        on_picture(step, std::span<const std::uint8_t>(rgb));
      }
    });
  }
  /// Of all rollouts that are there.
  std::int64_t environments() const {
    std::int64_t all = 0;
    for (std::size_t at = 0; at < job_.roles().rollouts.size(); ++at) all += environments_of(at);
    return all;
  }

  // ---- A rollout's
  /// Does its share of a request and answers; ends at its next decision where the leader has turned to something
  /// else meanwhile. Throws Stopped before training where `stop`, which may be null, asks; what else goes wrong is
  /// the leader's to tell.
  void serve(std::int64_t number, const std::string& text, const stop_flag* stop) {
    const auto request = parse_json<Request>(text, "a request of the job's leader");
    if (place() >= request.shares.size() || request.shares[place()].count == 0) return;
    const std::string key = job_.answer_key(number, job_.rank());
    Done done;
    const auto say = [&] { job_.cluster().put(key, json_text(done.answer)); };
    std::unique_ptr<Channel> leader;
    const stop_flag unwanted(stop, [this] { return job_.leader_moved_on(); });
    try {
      done = perform(request, request.shares[place()], &unwanted);
      say();
      const auto over = [&] {
        return job_.leader_moved_on() || (stop && stop->stop_requested() && !job_.begun());
      };
      if (!bulky(request) || !job_.wait_for(key + opens, "the leader to come for its answer", over)) return;
      job_.cluster().put(key + comes, "");
      leader = job_.cluster().channel("requests/" + key, job_.roles().leader(), meeting());
      send(request, done, *leader, stop);
    } catch (const Stopped&) {
      if (stop && stop->stop_requested() && !job_.begun()) throw;
      done.answer.stopped = true;
      say();
    } catch (const PeerError&) {  // the leader wants no more, or is gone, which the watch tells
    } catch (const DeadlineError&) {
    } catch (const std::exception& error) {
      done.answer.error = error.what();
      say();  // before the channel closes
    }
  }

 private:
  std::size_t place() const { return static_cast<std::size_t>(job_.rollout()); }
  int rank_of(std::size_t at) const { return job_.roles().rollouts[at]; }
  std::string name_of(std::size_t at) const { return job_.name(rank_of(at)); }
  std::chrono::nanoseconds limit() const { return parts_.settings.deadline(); }
  /// None where that rollout is asked no more.
  std::int64_t environments_of(std::size_t at) const {
    if (job_.rolls_out() && at == place()) return parts_.environment->size();
    if (gone_.contains(at) || parts_.lost(rank_of(at))) return 0;
    return parts_.settings.environments_of(job_, static_cast<int>(at));
  }

  /// Shares in `count` episodes, in proportion to environments and not more than these. Returns how many that
  /// are in all.
  std::int64_t deal(Request& request, std::int64_t count) const {
    const std::int64_t all = environments();
    if (all == 0) throw PeerError("no rollout is left to do what the leader asks for");
    count = std::min(count, all);
    std::int64_t before = 0, first = 0;
    for (std::size_t at = 0; at < job_.roles().rollouts.size(); ++at) {
      before += environments_of(at);
      const std::int64_t next = std::min(count * before / all, count);  // one may be lost just now
      request.shares.push_back({first, next - first});
      first = next;
    }
    return first;
  }
  /// All in one rollout, at most `count`: in the leader's own, or one on its machine, where there is one.
  void choose_one(Request& request, std::int64_t count) const {
    deal(request, environments());
    const auto nearness = [&](const Share& share) {
      const int rank = rank_of(static_cast<std::size_t>(&share - request.shares.data()));
      const auto node = [&](int of) { return job_.cluster().topology().node[static_cast<std::size_t>(of)]; };
      return share.count == 0 ? 0 : rank == job_.rank() ? 3 : node(rank) == node(job_.rank()) ? 2 : 1;
    };
    const auto chosen = std::ranges::max_element(request.shares, {}, nearness);
    const Share one{0, std::min(count, chosen->count)};
    std::ranges::fill(request.shares, Share{});
    *chosen = one;
  }

  /// Asks, does the leader's own share, and gives what came of each to `on_done(done, share, channel)`; there
  /// is a channel where another rollout has more than an answer.
  template <class OnDone>
  void ask(const Request& request, const stop_flag* stop, OnDone on_done) {
    std::vector<std::size_t> theirs;
    for (std::size_t at = 0; at < request.shares.size(); ++at)
      if (request.shares[at].count > 0 && !(job_.rolls_out() && at == place())) theirs.push_back(at);
    const std::int64_t number = theirs.empty() ? 0 : job_.request(json_text(request));
    if (job_.rolls_out() && request.shares[place()].count > 0) {
      Done done = perform(request, request.shares[place()], stop);
      on_done(done, request.shares[place()], nullptr);
    }
    for (const std::size_t at : theirs) {
      try {
        fetch(request, number, at, stop, on_done);
      } catch (const PeerError& why) {
        lose(request, at, why);
      } catch (const DeadlineError& why) {
        lose(request, at, why);
      }
    }
  }
  template <class OnDone>
  void fetch(const Request& request, std::int64_t number, std::size_t at, const stop_flag* stop,
             OnDone on_done) {
    const std::string key = job_.answer_key(number, rank_of(at));
    const Share share = request.shares[at];
    Done done{.answer = answer(key, at, stop), .episodes = share.count};
    if (!bulky(request)) return on_done(done, share, nullptr);
    job_.cluster().put(key + opens, "");
    look(key + comes, at, stop);
    const auto channel = job_.cluster().channel("requests/" + key, rank_of(at), meeting());
    try {
      make_room(request, share.count, done);
      pass_records(done, share.count, *channel, false);
      on_done(done, share, channel.get());
    } catch (const PeerError&) {
      answer(key, at, stop);  // where it says why
      throw;
    }
  }
  static bool bulky(const Request& request) { return request.kind != RequestKind::evaluation; }
  // Behind an answer's key: the leader is about to open the channel, and the rollout too. Neither waits in vain
  // for one that has turned to something else.
  static constexpr const char *opens = "/opens", *comes = "/comes";
  std::chrono::nanoseconds meeting() const { return Watch::meeting(parts_.settings.heartbeat(), limit()); }
  /// What a rollout has put there. Throws PeerError where it is lost, or the run ends.
  std::string look(const std::string& key, std::size_t at, const stop_flag* stop) const {
    const auto text = job_.wait_for(key, name_of(at) + " to do what it was asked for", [&] {
      throw_if_stopped(stop, "the wait for a rollout");
      return parts_.lost(rank_of(at));
    });
    if (!text) throw PeerError(name_of(at) + " is gone");
    return *text;
  }
  Answer answer(const std::string& key, std::size_t at, const stop_flag* stop) const {
    auto said = parse_json<Answer>(look(key, at, stop), "an answer of " + name_of(at));
    if (!said.error.empty()) throw Error(name_of(at) + ": " + said.error);
    if (said.stopped) throw PeerError(name_of(at) + " was asked to stop");
    return said;
  }
  /// The others do without it, or do its share, unless nobody else was asked.
  template <class Why>
  void lose(const Request& request, std::size_t at, const Why& why) {
    if (!job_.begun()) throw why;
    gone_.insert(at);
    parts_.notice(name_of(at) + " is asked for no more: " + why.what());
    if (request.kind == RequestKind::probe || request.kind == RequestKind::pictures) throw why;
  }

  /// A share of the work, on a rollout: what needs no channel.
  Done perform(const Request& request, Share share, const stop_flag* stop) {
    auto& worker = parts_.worker();
    Done done;
    done.episodes = share.count;
    make_room(request, parts_.environment->size(), done);
    if (request.kind == RequestKind::evaluation) {
      const auto starts =
          std::span(request.starts)
              .subspan(static_cast<std::size_t>(share.first), static_cast<std::size_t>(share.count));
      done.answer.episodes = worker.evaluate(starts, request.decoding, stop, request.first + share.first);
    }
    if constexpr (HasExpert<Environment>)
      if (request.kind == RequestKind::demonstrations) {
        done.answer.solved = worker.demonstrate(**done.transition, request.first + share.first, share.count,
                                                request.noise, stop);
      }
    if (request.kind == RequestKind::probe) {
      Decision first = cut_record(**done.decision, [](auto field) { return field.at(0); });
      done.answer.rows = worker.probe(**done.transition, first);
    }
    return done;
  }
  /// The rest, with the leader at the other end.
  void send(const Request& request, Done& done, Channel& leader, const stop_flag* stop) {
    if (request.kind == RequestKind::weights)
      parts_.fill_copy(request.version, [&](Model& copy) {
        for (const WeightUnit& unit : copy.units()) leader.receive(unit.values, limit());
        weights_written(copy);
      });
    if (request.kind == RequestKind::pictures)
      draw_here(request, request.shares[place()], stop, [&](std::int64_t, std::span<const std::uint8_t> rgb) {
        leader.send(std::as_bytes(rgb), limit());
      });
    pass_records(done, parts_.environment->size(), leader, true);
  }
  /// For what so many rows record.
  void make_room(const Request& request, std::int64_t rows, Done& done) const {
    std::pmr::memory_resource& heap = *std::pmr::new_delete_resource();
    const auto room_for = [&](BatchShape shape) {
      done.transition = std::make_unique<OwnedRecord<Transition>>(parts_.layout(shape), heap);
    };
    if (request.kind == RequestKind::demonstrations)
      room_for(parts_.settings.demonstrations(parts_.spec, rows));
    if (request.kind == RequestKind::probe) {
      room_for({1, rows, parts_.settings.config().model.chunk});
      done.decision = std::make_unique<OwnedRecord<Decision>>(parts_.model.decision_layout({1, rows}), heap);
    }
  }
  /// What is recorded, in so many columns, to the other end, or from it.
  void pass_records(Done& done, std::int64_t columns, Channel& channel, bool out) const {
    if (done.transition) pass_columns(*done.transition, columns, done.episodes, channel, out);
    if (done.decision) pass_columns(*done.decision, columns, done.episodes, channel, out);
  }
  /// The first `count` of a record's columns to the other end, or from it.
  template <class Type>
  void pass_columns(OwnedRecord<Type>& record, std::int64_t columns, std::int64_t count, Channel& channel,
                    bool out) const {
    const detail::Strips strips = detail::column_strips(*record, columns, 0, count);
    detail::StripCursor at(strips);
    std::vector<std::byte> chunk(std::min(bytes_in(strips), std::size_t{1} << 20));
    for (std::size_t left = bytes_in(strips); left > 0;) {
      const std::span<std::byte> part(chunk.data(), std::min(left, chunk.size()));
      if (out) {
        detail::gather(record.block().data(), at, part);
        channel.send(part, limit());
      } else {
        channel.receive(part, limit());
        detail::scatter(part, record.block().data(), at);
      }
      left -= part.size();
    }
  }
  template <class OnPicture>
  void draw_here(const Request& request, Share share, const stop_flag* stop, OnPicture on_picture) {
    if constexpr (HasRender<Environment>) {
      const auto side = static_cast<int>(request.side), width = views_of<Environment> * side;
      const auto line = static_cast<std::size_t>(3 * width);
      std::vector<std::uint8_t> tile(line * static_cast<std::size_t>(side)),
          all(tile.size() * static_cast<std::size_t>(share.count));
      parts_.worker().watch(request.decoding, [&](std::int64_t step) {
        throw_if_stopped(stop, "the animation");
        for (std::int64_t column = 0; column < share.count; ++column) {
          parts_.environment->render(column, width, side, tile);
          for (int y = 0; y < side; ++y)
            std::copy_n(tile.data() + static_cast<std::size_t>(y) * line, line,
                        all.data() + static_cast<std::size_t>(y * share.count + column) * line);
        }
        on_picture(step, std::span<const std::uint8_t>(all));
      });
    }
  }

  Parts& parts_;
  Job& job_;
  std::set<std::size_t> gone_;  ///< rollouts that are asked no more, by place
};

}  // namespace dvla
