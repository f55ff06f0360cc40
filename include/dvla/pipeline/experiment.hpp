// A training run as users start it from a shell: command line in, a run folder out. Warm start, training with
// a progress line, TensorBoard events, checkpoints, pictures before and after, trace and report. All of it is
// presentation: Run does the work, and a program that wants none of this uses Run directly.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/passive_waits.hpp"
#include "dvla/core/text.hpp"
#include "dvla/handoff/signals.hpp"
#include "dvla/io/animation.hpp"
#include "dvla/io/plot.hpp"
#include "dvla/io/run_folder.hpp"
#include "dvla/io/standard_streams.hpp"
#include "dvla/io/tensorboard.hpp"
#include "dvla/io/watchers.hpp"
#include "dvla/memory/host_pool.hpp"
#include "dvla/model/bf16_instructions.hpp"
#include "dvla/pipeline/cause.hpp"
#include "dvla/pipeline/checkpoint.hpp"
#include "dvla/pipeline/command_line.hpp"
#include "dvla/pipeline/page.hpp"
#include "dvla/pipeline/progress.hpp"
#include "dvla/pipeline/run.hpp"
#include "dvla/trace/chrome.hpp"

BOOST_HANA_ADAPT_STRUCT(dvla::PoolReport, name, high_water, fragmentation, allocations);  // in report.json

namespace dvla {

/// Success and timing of a finished experiment: what report.json holds, by the definitions of
/// docs/numbers.md.
struct ExperimentResult {
  std::optional<double> success_before;         ///< on fresh seeds, after the warm start; none: not evaluated
  std::optional<double> success_rate;           ///< on the same fresh seeds, after training
  std::vector<EvaluatedEpisode> before, after;  ///< each episode of these evaluations
  std::optional<WarmStartResult> warm_start;
  RatioError ratio{};  ///< of the start-up self-test
  RunReport report;
};

namespace detail {

/// Bytes of a model's weights: of what trains, which is what travels and is checkpointed, and of what is frozen.
inline std::pair<std::size_t, std::size_t> weight_bytes(const std::vector<Parameter>& parameters) {
  std::size_t trainable = 0, frozen = 0;
  for (const Parameter& each : parameters)
    if (each.alias_of.empty()) (each.trainable ? trainable : frozen) += each.bytes();
  return {trainable, frozen};
}

template <class Run>
nlohmann::json report_json(Run& run, const ExperimentResult& result) {
  const RunReport& report = result.report;
  const ObservationSpec& spec = run.spec().observation;
  const std::int64_t horizon = run.spec().horizon;
  nlohmann::json json = json_of(report);
  json.update(json_of(report.timing));
  if (report.signal != 0) json["signal_name"] = signal_name(report.signal);
  json["env_steps_per_s"] = report.env_steps_per_s();
  json["chunk_steps_per_s"] = report.chunk_steps_per_s();
  json["staleness_histogram"] = report.staleness;
  json["ratio_error"] = result.ratio.error;
  json["log_ratio_mean"] = result.ratio.mean;
  json["log_ratio_percentile_99"] = result.ratio.percentile_99;
  json["success_rate"] = json_of(result.success_rate);
  json["success_rate_before"] = json_of(result.success_before);
  if (!result.before.empty()) json["evaluation_before"] = evaluation_json(result.before, spec, horizon);
  if (!result.after.empty()) json["evaluation"] = evaluation_json(result.after, spec, horizon);
  for (const RankReport& rank : report.ranks) {
    nlohmann::json figures = json_of(rank);
    figures["name"] = rank.trace.name;
    figures.erase("trace");  // it has a file of its own
    json["ranks"].push_back(std::move(figures));
  }
  if (!report.looks.empty()) json["looks"] = json_of(report.looks);
  if (!report.silent.empty()) json["silent_ranks"] = report.silent;
  if (result.warm_start) json["warm_start"] = json_of(*result.warm_start);
  json["pipeline"] = Run::pipeline::describe(run.config().run);
  for (const auto& [name, words] : run.conventions()) json["conventions"][name] = words;
  for (const MemoryItem& item : run.memory_plan().items()) json["memory_plan"][item.kind] = item.bytes;
  const auto [trainable, frozen] = weight_bytes(run.model().parameters());
  json["weights"] = {{"trainable_bytes", trainable}, {"frozen_bytes", frozen}};
  json["pools"] = json_of(run.memory().report());
  json["peak_resident_bytes"] = peak_resident_bytes();
  return json;
}

/// What Adaptive saw and did, a line for each look that moved something, and the last.
inline std::string looks_text(const RunReport& report) {
  const bool alone = report.ranks.empty();
  std::string out;
  for (std::size_t i = 0; i < report.looks.size(); ++i) {
    const Look& look = report.looks[i];
    const bool moves = !(look.next == look.shares);
    if (!moves && i + 1 < report.looks.size()) continue;
    out += (out.empty() ? "shares of the work (sampling:training), " : "\n  ") +
           printed("before batch %lld: rollout %.3g s, actor %.3g s a batch with ",
                   static_cast<long long>(look.batch), look.times.sampling_s, look.times.training_s) +
           to_text(look.shares, alone) + (moves ? "; from then on " + to_text(look.next, alone) : "; kept");
  }
  return out;
}

/// What a job's leader prints besides: staleness, bytes of each plane, episodes, ranks.
inline std::string job_text(const RunReport& report) {
  const RankReport all = total(report.ranks);
  const auto text = [](std::int64_t bytes) { return mebibytes(static_cast<std::size_t>(bytes), 2); };
  std::string out = "between ranks: trajectories " + text(all.data_bytes_sent) + ", weights " +
                    text(all.weight_bytes_sent) + ", gradients and parameters of actors " +
                    text(all.gradient_bytes_sent) + "\n";
  out += "episodes: " + std::to_string(all.sent + all.unreported) + " sent = " + std::to_string(all.trained) +
         " trained + " + std::to_string(all.dropped) + " dropped + " + std::to_string(all.in_flight) +
         " in flight + " + std::to_string(all.unacknowledged) + " unacknowledged";
  if (all.unreported > 0)
    out += "; " + std::to_string(all.unreported) + " are of rollouts that were lost, as received from them";
  if (all.lost > 0) out += "; " + std::to_string(all.lost) + " were missing when they were to be trained on";
  out += '\n';
  for (const RankReport& rank : report.ranks)
    out += printed("  %-28s rollout %.3g s, actor %.3g s, sync %.3g s an iteration; %lld env steps\n",
                   rank.trace.name.c_str(), rank.rollout_time_s, rank.actor_time_s, rank.sync_time_s,
                   static_cast<long long>(rank.env_steps));
  for (const int rank : report.silent) out += "  rank " + std::to_string(rank) + " gave no report\n";
  return out;
}

/// What a run prints of its figures at its end.
template <class Run>
std::string figures_text(const Run& run, const ExperimentResult& result) {
  const RunReport& report = result.report;
  const auto [trainable, frozen] = weight_bytes(run.model().parameters());
  std::string out =
      "\n" + trace::to_text(report.timing) + "\n" +
      printed("%.0f env_steps/s, %.0f chunk_steps/s, largest staleness %lld, %.1f s of training",
              report.env_steps_per_s(), report.chunk_steps_per_s(),
              static_cast<long long>(report.max_staleness), report.train_wall_s) +
      "\nmost memory that was resident: " + mebibytes(peak_resident_bytes()) + "; planned " +
      mebibytes(run.memory_plan().total()) +
      " beside the process itself\nweights: " + mebibytes(trainable, 2) + " train and travel, " +
      mebibytes(frozen, 2) + " are frozen\nstaleness:";
  for (std::size_t lag = 0; lag < report.staleness.size(); ++lag)
    out += printed("%s %lld batches at %zu", lag > 0 ? "," : "",
                   static_cast<long long>(report.staleness[lag]), lag);
  if (!report.looks.empty()) out += "\n" + looks_text(report);
  if (!report.ranks.empty()) out += "\n" + job_text(report);
  if (!result.success_rate) return out;
  out += printed("\nsuccess on %zu %s: ", result.after.size(),
                 run.config().run.evaluation_cases.empty() ? "fresh episodes" : "cases");
  if (result.success_before) out += printed("%.3f before, ", *result.success_before);
  out += printed("%.3f after", *result.success_rate);
  const auto tasks = by_task(result.after, run.spec().observation);
  for (const TaskSuccess& task : tasks)
    if (tasks.size() > 1)
      out += printed("\n  %.3f of %lld: %.160s", task.success, static_cast<long long>(task.episodes),
                     task.task.c_str());
  return out;
}

/// Throws ConfigError, naming the first knob, on ranks whose configuration is not rank 0's.
inline void check_same_config(Cluster& cluster, const nlohmann::json& config,
                              std::chrono::nanoseconds limit) {
  if (cluster.world() == 1) return;
  const std::string key = "run/config";
  if (cluster.rank() == 0) {
    cluster.put(key, config.dump());
    return;
  }
  const nlohmann::json first = nlohmann::json::parse(cluster.get(key, limit));
  if (first == config) return;
  const JsonDifference differs(first, config);
  throw ConfigError(differs.field + " is " + differs.there + " on rank 0 and " + differs.here + " on rank " +
                    std::to_string(cluster.rank()) + "; start all ranks with the same settings");
}

/// For people: what asked, if it was a signal.
inline std::string by(int signal) { return signal == 0 ? "" : " (" + signal_name(signal) + ")"; }

/// Episodes side by side, one frame a control step, three squares wide or little more; the last frame is held. Throws Stopped at the next
/// frame once `stop` asks; there is no file then.
template <class Run>
void film(Run& run, const std::filesystem::path& path, const stop_flag* stop) {
  if constexpr (HasRender<typename Run::Environment>) {
    constexpr int side = 240, squares = 3, views = views_of<typename Run::Environment>,
                  columns = (squares + views - 1) / views, delay = 10, held = 90;  // hundredths of a second
    std::optional<io::GifWriter> gif;
    std::exception_ptr failed;  // the file; who draws is heard out nevertheless
    run.draw(
        columns, side,
        [&](std::int64_t step, std::span<const std::uint8_t> rgb) {
          if (failed) return;
          try {
            if (!gif) gif.emplace(path, side, static_cast<int>(rgb.size() / (3 * side)));
            gif->add(rgb, step == run.spec().horizon ? held : delay);
          } catch (const std::exception&) {
            failed = std::current_exception();
          }
        },
        stop);
    if (failed) std::rethrow_exception(failed);
    gif->commit();
  }
}

/// Whether a run that goes on from `checkpoint` in its own folder leaves later checkpoints behind it, which
/// would be taken for the newest. Throws ConfigError if they may not be dropped.
inline bool goes_back(const io::SafetensorsFile& checkpoint, std::int64_t step, bool may_drop) {
  const std::filesystem::path folder = checkpoint.path().parent_path();
  const io::LatestCheckpoint newest = io::CheckpointFolder(folder).latest();
  if (!newest.checkpoint || newest.checkpoint->step <= step) return false;
  if (!may_drop)
    throw ConfigError("run.resume is step " + std::to_string(step) + ", but '" + folder.string() +
                      "' goes on to step " + std::to_string(newest.checkpoint->step) +
                      ": resume that one, begin a new run with another --name, or add --overwrite to drop "
                      "the later checkpoints");
  return true;
}

/// Whether this rank leads the job at first, which Run finds once it has its place in it.
template <class P>
bool leads_in(const Config<P>& config, const Cluster& cluster) {
  using Placement = machinery_t<typename P::placement, P>;
  return Placement::roles(config.placement, cluster.topology()).leader() == cluster.rank();
}

/// A step of preparation that ranks take together: what one of them refuses, all refuse.
template <class Work>
void take_together(const Job& job, const std::string& stage, Work work) {
  try {
    work();
  } catch (const std::exception& why) {
    if (!job.alone() && job.incarnation() == 0)  // else the others go on without it
      job.tell(stage, why.what());               // where their roll call looks
    throw;
  }
  job.roll_call(stage);
}

/// Where some ranks joined the job, the leader tells them which batch a resumed run goes on with.
template <class Run>
void agree_on_next_batch(Run& run) {
  const Job& job = run.job();
  const Topology& topology = job.cluster().topology();
  if (topology.joined.empty() || run.config().run.resume.empty()) return;
  if (job.leads()) job.tell("next", std::to_string(run.next_batch()));
  if (topology.has_joined(job.rank()))
    run.continue_from(std::stoll(job.told("next", job.roles().leader())), {});
}

inline void draw_success(const std::filesystem::path& path, const std::string& title,
                         const std::vector<Iteration>& history) {
  io::PlotSeries batch{"batch (sampled)", {}, {}, {}, {}}, mean{"mean of 10 batches", {}, {}, {}, {}};
  double sum = 0;
  for (std::size_t i = 0; i < history.size(); ++i) {
    sum += history[i].update.success_rate - (i >= 10 ? history[i - 10].update.success_rate : 0);
    batch.x.push_back(static_cast<double>(i + 1));
    batch.y.push_back(history[i].update.success_rate);
    mean.x.push_back(static_cast<double>(i + 1));
    mean.y.push_back(sum / static_cast<double>(std::min<std::size_t>(i + 1, 10)));
  }
  if (history.empty()) return;
  io::LineChart chart;
  chart.title = title;
  chart.x_title = "iterations";
  chart.y_title = "success rate";
  chart.y_range = {0.0, 1.0};
  chart.series = {batch, mean};
  io::write_line_chart(path, chart);
}

/// `earlier_steps`: of the runs that this one continues.
inline void log_scalars(io::TensorBoardWriter& events, const Iteration& iteration, std::int64_t earlier_steps,
                        const std::vector<std::string>& instructions) {
  const UpdateStats& update = iteration.update;
  const std::int64_t step = iteration.batch + 1;
  const auto put = [&](std::string_view tag, double value) {
    events.scalar(tag, step, static_cast<float>(value));
  };
  put("rollout/success", update.success_rate);
  for (std::size_t task = 0; task < std::min(instructions.size(), update.tasks.size()); ++task)
    if (const auto [episodes, solved] = update.tasks[task]; instructions.size() > 1 && episodes > 0)
      put("rollout/success/" + instructions[task], solved / episodes);
  put("rollout/return", update.mean_return);
  put("rollout/informative_groups", static_cast<double>(update.informative_groups));
  put("rollout/staleness", static_cast<double>(iteration.staleness));
  put("rollout/env_steps", static_cast<double>(iteration.counts.env_steps));
  put("train/policy_loss", update.loss.policy_loss);
  put("train/approx_kl", update.loss.approx_kl());
  put("train/clip_fraction_low", update.loss.clip_fraction_low());
  put("train/clip_fraction_high", update.loss.clip_fraction_high());
  put("train/dropped_fraction", update.loss.dropped_fraction());
  put("train/ratio_mean", update.loss.ratio_mean());
  if (update.loss.values > 0) {
    put("train/value_loss", update.loss.value_loss);
    put("train/explained_variance", update.explained_variance);
  }
  if (update.loss.kl_loss != 0) put("train/kl_loss", update.loss.kl_loss);
  put("train/gradient_norm", update.gradient_norm);
  put("train/rows", static_cast<double>(update.rows));
  if (iteration.elapsed_s > 0)
    put("time/env_steps_per_s",
        static_cast<double>(iteration.counts.env_steps - earlier_steps) / iteration.elapsed_s);
}

template <class P>
ExperimentResult run_experiment(const Config<P>& config, Cluster& cluster, const std::string& mark,
                                std::unique_ptr<Run<P>>& run, std::string& end) {
  const io::SafeStreams streams;
  bool leads = false;
  // Shared with the run's threads, which outlive this where training throws.
  std::shared_ptr<ProgressLine> progress;
  const auto faults = std::make_shared<FaultList>();
  const auto warn = [faults](const std::string& what) {
    faults->add(what);
    std::cerr << "warning: " + what + "\n";
  };
  const auto print = [&](const std::string& line) {
    if (line.starts_with("warning: ")) faults->add(line.substr(9));
    progress ? progress->say(line) : void(std::cerr << line + "\n");
  };
  io::Watchers watchers(print);
  const auto say = [&](const std::string& text) {
    if (!leads || config.run.quiet || std::cout << text << std::endl) return;
    std::cout.clear();
    watchers.tell("output", "standard output takes no text, the run goes on");
  };
  stop_flag stop;
  signal_guard guard(stop);
  const auto unless_stopped = [&](auto work) {
    try {
      throw_if_stopped(&stop, "the run");
      work();
    } catch (const Stopped&) {
    } catch (const PeerError& lost) {
      if (!run->job().begun()) throw;
      warn("an evaluation or animation is left out: " + std::string(lost.what()));
    }
  };

  const std::filesystem::path root = config.run.folder;
  const bool anew = config.run.resume.empty();
  bool continues = false, goes_back = false;
  std::filesystem::path continued;
  const auto folder_mode = [&] {
    return continues              ? io::RunFolderMode::resume
           : config.run.overwrite ? io::RunFolderMode::overwrite
                                  : io::RunFolderMode::fresh;
  };
  std::optional<io::SafetensorsFile> resumed;
  // A rollout that joins, maybe on another machine, or comes again needs no file: actors give it weights.
  const bool given_weights = cluster.topology().has_joined(cluster.rank()) || Job::has_begun(cluster);
  try {  // what can be wrong is found before memory is taken, and before a file is written
    validate(config);
    detail::check_same_config(cluster, to_json(config), nanoseconds(config.schedule.deadline_s));
    std::int64_t done = 0;
    if (!anew && !given_weights) {
      resumed.emplace(io::open_checkpoint(config.run.resume));
      done = check_checkpoint(RunSettings<P>(config).config(), *resumed);
      // A run goes on in its own folder only; a checkpoint from elsewhere begins a new one.
      std::error_code elsewhere;
      continues = std::filesystem::equivalent(resumed->path().parent_path(),
                                              root / config.run.name / "checkpoint", elsewhere);
      continued = resumed->path();
      goes_back = continues && detail::goes_back(*resumed, done, config.run.overwrite);
    }
    if (!given_weights && (anew || done < config.run.iterations) && leads_in<P>(config, cluster))
      io::RunFolder::check(root, config.run.name, folder_mode());
  } catch (const std::exception& why) {
    Job::refuse(cluster, why);
    throw;
  }
  run = std::make_unique<Run<P>>(config, cluster, [&](const MemoryPlan& plan, const Job& job) {
    leads = job.leads();
    if (leads) say(plan.text());
  });
  leads = run->job().leads();
  detail::take_together(run->job(), "loaded", [&] {
    if (resumed) load_checkpoint(*run, *resumed);
  });
  detail::agree_on_next_batch(*run);
  if (!anew && run->next_batch() >= config.run.iterations) {
    say("nothing to do: '" + (resumed ? resumed->path().string() : config.run.resume) + "' has " +
        std::to_string(run->next_batch()) + " batches, and --iterations is " +
        std::to_string(config.run.iterations));
    return {};
  }
  io::RunFolder folder;
  const auto leave_mark = [&] {
    if (!mark.empty()) io::write_file(folder.job, mark + "\n");
  };
  detail::take_together(run->job(), "opened", [&] {
    if (!leads) return;
    folder = io::RunFolder::open(root, config.run.name, folder_mode());
    // A restart of a run that goes back goes back again, until the later checkpoints are gone.
    if (goes_back)
      std::filesystem::remove(folder.job);
    else
      leave_mark();
    io::write_file(folder.config, to_json(kept(config)).dump(2) + "\n");
    if (!folder.lock.why_not().empty()) watchers.tell("lock", folder.lock.why_not());
  });
  ExperimentResult result;
  // A run that ends before it has trained leaves nothing, so that it can be started again as it was.
  struct Unkept {
    io::RunFolder& folder;
    bool kept;
    ~Unkept() { remove(); }
    void remove() {
      std::error_code not_empty;  // then it stays
      if (kept) return;
      folder.lock.release();
      for (const auto& path :
           {folder.config, folder.job, folder.before_gif, folder.checkpoint, folder.folder})
        std::filesystem::remove(path, not_empty);
    }
  } unkept{folder, !leads || continues};
  const auto saves_after = [&](std::int64_t batch) {
    return config.run.checkpoint_every > 0 && (batch + 1) % config.run.checkpoint_every == 0;
  };
  const io::CheckpointFolder checkpoints(
      root / config.run.name / "checkpoint", config.run.keep_checkpoints, io::shard_bytes,
      [&](const std::string& untidy) { watchers.tell("checkpoints", untidy); });
  std::int64_t saved_batches = continues ? run->next_batch() : -1;
  std::filesystem::path saved = continues ? continued : std::filesystem::path();
  const auto save = [&](auto... still) {  // once a batch; on all actors alike
    if (!run->job().trains() || saved_batches == run->next_batch()) return saved;
    saved = save_checkpoint(*run, checkpoints, still...);
    saved_batches = run->next_batch();
    if (goes_back && leads)
      watchers.attempt("dropping the later checkpoints", [&] {
        checkpoints.remove_after(run->next_batch());
        leave_mark();
      });
    return saved;
  };
  const auto after_update = [&](std::int64_t batch) {
    try {
      if (saves_after(batch)) save();
    } catch (const NotSaved& why) {
      print("warning: no checkpoint after batch " + std::to_string(batch + 1) +
            ", the next one is tried as ever: " + why.what());
    }
  };
  std::vector<std::string> lost;  // the run ends with this error, when all else is done
  const auto at_end = [&](std::int64_t batches) {
    try {
      if (batches > 0 || !continues) save();
    } catch (const NotSaved& why) {
      lost.push_back(std::string("the last checkpoint: ") + why.what());
    }
  };
  const auto throw_if_lost = [&] {
    if (lost.empty()) return;
    std::string all = "the run has ended, but something of what it leaves could not be written: ";
    for (const std::string& each : lost) all += (&each == lost.data() ? "" : "; ") + each;
    throw Error(all);
  };
  const std::int64_t earlier_batches = run->next_batch();
  // Whatever ends training: what has been trained since the last checkpoint is saved where all of the weights can
  // be had, and the error's sentence says where the newest one is.
  const auto keep = [&] {
    std::string why = "training did not come to rest", newest = "; the newest checkpoint is '", how;
    try {
      run->while_still([&](const StillWeights& still) {
        why.clear();
        if (run->next_batch() <= std::max(saved_batches, earlier_batches)) return;
        save(still);
        newest = "; saved '";
        if (still.torn) how = ", in the midst of an update";
      });
    } catch (const std::exception& error) {
      why = error.what();
    }
    std::string text = why.empty() ? "" : "; nothing was saved now: " + why;
    if (!saved.empty()) text += newest + saved.string() + "'" + how;
    return text;
  };
  const auto end_by_hang = [&](const std::string& what) {
    if (!run->job().alone() && run->job().trains())
      detail::cause_of(cluster, run->job().name() + " has ended: " + what, true);
    return "error: " + what + (run->job().trains() ? keep() : "");
  };
  if (!leads) {
    run->on_hang([&](const std::string& what) {
      std::cerr << end_by_hang(what) + "\n";
      std::_Exit(1);
    });
    // Of other ranks an actor would tell what the leader tells; of its own environment's rows nobody else does.
    const std::string own = run->job().trains() ? "rank " + std::to_string(cluster.rank()) + " " : "";
    run->on_notice([own](const std::string& what) {
      if (what.starts_with(own)) std::cerr << "warning: " + what + "\n";
    });
    try {
      result.report = run->train({}, after_update, &stop, at_end);
    } catch (const std::exception&) {
      if (run->job().trains()) keep();
      throw;
    }
    throw_if_lost();
    return result;
  }
  run->on_hang([&](const std::string& what) {  // before training
    unkept.remove();
    std::cerr << "error: " + what + "\n";
    std::_Exit(1);
  });
  run->on_notice(warn);
  say(P::describe(run->config().run));
  if (const std::vector<std::string> warnings = run->adapter().warnings(); leads)
    for (const std::string& warning : warnings) warn(warning);
  if (!run->job().alone()) say(describe(run->job()));
  if (resumed) {
    say("resumed from '" + resumed->path().string() + "': " + std::to_string(run->next_batch()) +
        " batches are done" +
        (goes_back ? "; the checkpoints of later steps go when the first new one is complete" : ""));
    for (const ChangedKnob& knob : changed_knobs(run->config(), *resumed))
      say("  since the checkpoint " + knob.text + " in it");
    resumed.reset();
  }
  result.ratio = run->self_test();
  if (computes_in_16_bits(run->model())) {
    say("bfloat16: this processor's instructions for it: " + std::string(bf16_instructions()) +
        (bf16_instructions() == "none" ? " (matrix products are made in float32)" : ""));
    say(printed(
        "self-test: log-probabilities of unchanged weights differ by %.1e on average (limit 0.01), %.1e "
        "at the 99th percentile (0.05); the worst ratio is %.1e off",
        result.ratio.mean, result.ratio.percentile_99, result.ratio.error));
  } else {
    say(printed("self-test: ratio of unchanged weights is 1 within %.1e (limit 1e-5)", result.ratio.error));
  }
  if constexpr (HasExpert<typename Run<P>::Environment>) {
    if (anew && config.run.demonstrations > 0) {
      unless_stopped([&] { result.warm_start = run->warm_start(&stop); });
      if (!result.warm_start) {
        say("stopped by request" + by(stop.signal()) +
            " in the warm start: nothing was trained, so nothing is kept");
        result.report.stopped = true;
        result.report.signal = stop.signal();
        return result;
      }
      say(printed(
          "warm start: %d demonstrations (the noisy expert solves %.2f), %lld steps, sampled success %.2f",
          config.run.demonstrations, result.warm_start->expert_success,
          static_cast<long long>(result.warm_start->steps), result.warm_start->success));
    }
  }
  progress = std::make_shared<ProgressLine>(config.run.iterations, config.run.quiet, run->job().alone());
  const auto tell = [progress, faults](const std::string& what) {
    faults->add(what);
    progress->say("warning: " + what);
  };
  run->on_notice(tell);
  const std::vector<Start>& episodes = run->evaluation_episodes();
  const auto only_watch = [&](const std::string& what, auto work) {
    unless_stopped([&] {
      try {
        work();
      } catch (const Stopped&) {
        throw;
      } catch (const PeerError&) {
        throw;
      } catch (const std::exception& why) {
        watchers.tell(what, what + " is left out: " + why.what());
      }
    });
  };
  const auto evaluate = [&](std::optional<double>& success, std::vector<EvaluatedEpisode>& each) {
    if (episodes.empty()) return;
    auto played = run->evaluate(episodes, Decoding::mode, &stop);
    if (std::ranges::all_of(played, &EvaluatedEpisode::failed))
      throw Error("an environment failed in each of the " + std::to_string(played.size()) +
                  " episodes of the evaluation, as warnings say");
    each = std::move(played);
    success = success_of(each);
  };
  const auto film = [&](const std::filesystem::path& path) {
    if (config.run.animation) only_watch("an animation", [&] { detail::film(*run, path, &stop); });
  };
  // Nothing is lost yet, so what is wrong with it is said before training, not after it.
  unless_stopped([&] { evaluate(result.success_before, result.before); });
  if (!continues || run->next_batch() == 0) film(folder.before_gif);

  unkept.kept = true;
  nlohmann::json page;
  std::mutex page_mutex;  // a hang is told beside the observer
  const auto write_page = [&](const std::string& state, std::int64_t batches,
                              const nlohmann::json& report = nullptr) {
    watchers.attempt("index.html", [&] {
      const std::scoped_lock lock(page_mutex);
      if (page.is_null()) page = page_data(config, run->config().run, run->conventions());
      std::vector<EvaluationPoint> points;
      if (result.success_before) points.push_back({earlier_batches, *result.success_before});
      if (result.success_rate) points.push_back({run->next_batch(), *result.success_rate});
      detail::fill_page(page, state, run->live_history(), static_cast<std::size_t>(batches),
                        static_cast<std::size_t>(earlier_batches), run->spec().observation.instructions,
                        points, *faults);
      page["report"] = report;
      page["evaluation_episodes"] = episodes.size();
      page["pictures"] = nlohmann::json::array();
      for (const auto& file : {folder.before_gif, folder.after_gif})
        if (std::filesystem::exists(file)) page["pictures"].push_back(file.filename().string());
      io::write_page(folder.page, page);
      write_runs_page(root, config.run.name, state);
    });
  };
  const std::int64_t earlier_steps = run->history().empty() ? 0 : run->history().back().counts.env_steps;
  std::optional<io::TensorBoardWriter> events;
  const auto log = [&](auto write) {
    watchers.attempt("TensorBoard's events", [&] {
      if (!events) events.emplace(folder.events, earlier_batches + 1);
      write(*events);
    });
  };
  run->on_hang([&](const std::string& what) {
    progress->say(end_by_hang(what));
    write_page("ended: " + what, run->next_batch());
    std::_Exit(1);  // past the thread that hangs
  });
  // The page costs the observer a hundredth of its time at most.
  using clock = std::chrono::steady_clock;
  clock::time_point next_page = clock::now();
  int idle = 0;
  bool told_of_idling = false;
  try {
    result.report = run->train(
        [&](const Iteration& iteration) {
          log([&](auto& to) {
            detail::log_scalars(to, iteration, earlier_steps, run->spec().observation.instructions);
          });
          progress->show(iteration, run->trace());
          idle = iteration.update.optimiser_steps > 0 ? 0 : idle + 1;
          if (idle == 5 && !std::exchange(told_of_idling, true))
            tell(printed(
                "five batches without an optimiser step: each group of theirs is masked or gained the same "
                "throughout; the last one's mean return is %.3g: is the task solved or out of reach, or does "
                "a "
                "filter of returns leave all out?",
                iteration.update.mean_return));
          if (const auto begin = clock::now(); begin >= next_page) {
            write_page("running", iteration.batch + 1);
            next_page = clock::now() +
                        std::max<clock::duration>(100 * (clock::now() - begin), std::chrono::seconds(10));
          }
        },
        after_update, &stop, at_end);
  } catch (const std::exception& why) {
    end = keep();
    write_page(std::string("ended by an error: ") + why.what(), run->next_batch());
    throw;
  }
  progress->finish();
  if (continues && result.report.batches == 0) {
    say("stopped by request before a batch was trained; the run is as it was");
    return result;
  }
  only_watch("an evaluation", [&] {
    const bool as_before = result.report.batches == 0 && !result.before.empty();
    if (!as_before) return evaluate(result.success_rate, result.after);
    result.success_rate = result.success_before;
    result.after = result.before;
  });
  log([&](auto& to) {
    if (result.success_rate)
      to.scalar("evaluation/success", run->next_batch(), static_cast<float>(*result.success_rate));
    const auto tasks = by_task(result.after, run->spec().observation);
    for (const TaskSuccess& task : tasks)
      if (tasks.size() > 1)
        to.scalar("evaluation/success/" + task.task, run->next_batch(), static_cast<float>(task.success));
    to.close();
  });
  const std::string checkpoint =
      lost.empty() ? "the checkpoint is complete" : "the last checkpoint is missing";
  if (result.report.stopped && !stop.stop_requested())
    say("ended after batch " + std::to_string(run->next_batch()) + " of " +
        std::to_string(config.run.iterations) +
        ": another rank was asked to stop, or all rollouts have left; " + checkpoint);
  if (stop.stop_requested()) {
    result.report.stopped = true;
    result.report.signal = stop.signal();
    say("stopped by request" + by(stop.signal()) + "; " + checkpoint +
        ", further evaluations and animations are left out");
  }
  // Figures before pictures: a missing gnuplot or GL library must not cost the report.
  const auto leave = [&](const std::filesystem::path& file, auto text) {
    try {
      io::write_file(file, text());
    } catch (const std::exception& why) {
      lost.push_back(why.what());
    }
  };
  nlohmann::json report;
  leave(folder.report, [&] {
    report = detail::report_json(*run, result);
    return report.dump(2) + "\n";
  });
  const std::filesystem::path hand_overs = folder.hand_overs(run->recording().first_batch);
  if (config.run.record) leave(hand_overs, [&] { return to_text(run->recording()); });
  if (config.run.trace)
    watchers.attempt("trace.json", [&] {
      std::vector<trace::process> job = traces_of(result.report.ranks);
      if (job.empty()) job.push_back(trace::snapshot(run->trace(), config.run.name));
      trace::write_chrome_file(folder.trace.string(), job);
    });
  watchers.attempt("success.svg", [&] {
    detail::draw_success(folder.success_svg, config.run.name + ": success while training", run->history());
  });
  film(folder.after_gif);
  write_page(result.report.stopped ? "stopped" : "finished", run->next_batch(), report);
  if (stop.stop_requested() && !result.report.stopped)
    say("stopped by request" + by(stop.signal()) + ": the last animation is left out");

  say(detail::figures_text(*run, result));
  std::string written = "written to " + folder.folder.string() + ": TensorBoard events, config.json";
  for (const auto& file : {folder.page, folder.report, folder.success_svg, folder.before_gif,
                           folder.after_gif, folder.trace, hand_overs, saved})
    if (std::error_code unknown; std::filesystem::exists(file, unknown))
      written += ", " + file.lexically_relative(folder.folder).string();
  say(written);
  throw_if_lost();
  return result;
}

}  // namespace detail

/// One experiment. Writes config.run.folder/config.run.name; throws dvla::Error, with ConfigError before
/// anything is written. What asks a process to end (signal_guard::signals) ends it cleanly and is no error:
/// - in the warm start, at its next step: half-cloned weights are good for nothing, so no folder is left;
/// - in training, when the batches that have started are trained: checkpoint and report are written;
/// - in an evaluation or an animation, at its next decision or frame: that figure is null, that file is not
///   there, and so for all evaluations and animations after it; checkpoint and report are written.
/// A resumed run goes on in its own folder, or begins a new one if the checkpoint lies elsewhere. One that
/// has no batch to train, or is stopped before its first, leaves report, curve and checkpoints as they are.
///
/// In a job of several processes each rank calls it with the same configuration; the leader evaluates, prints
/// and writes, and its result is the job's. `mark`, if any, is left in the run's folder: by it a restart of
/// the same job knows its own.
template <class P>
ExperimentResult run_experiment(const Config<P>& config, Cluster& cluster, const std::string& mark = {}) {
  std::unique_ptr<Run<P>> run;
  std::string end;  // of an error's sentence: what is left of the run
  const auto with_end = [&]<class Type>(const Type& error) {
    if (!end.empty()) std::throw_with_nested(Type(error.what() + end));
  };
  const auto let_others_read = [&] {
    if (cluster.rank() > 0) return;
    run.reset();  // ends its connections
    detail::wait_for_readers(cluster);
  };
  try {
    ExperimentResult result = detail::run_experiment(config, cluster, mark, run, end);
    if (result.report.stopped && !run->job().begun()) let_others_read();
    return result;
  } catch (const Stopped&) {
    throw;
  } catch (const JobEnded& error) {
    let_others_read();
    with_end(error);
    throw;
  } catch (const std::exception& error) {
    if (cluster.world() == 1) {
      with_end(Error(error.what()));
      throw;
    }
    const std::string own =
        (cluster.rank() == 0 ? "rank 0, which leads the job, has ended: " : "") + std::string(error.what());
    const std::string why = detail::cause_of(cluster, own, cluster.rank() == 0, std::chrono::milliseconds(0));
    let_others_read();
    if (dynamic_cast<const ConfigError*>(&error)) throw;
    if (why.find(error.what()) == why.npos) throw JobEnded(why + end);
    with_end(Error(error.what()));
    throw;
  }
}

template <class P>
ExperimentResult run_experiment(const Config<P>& config) {
  LoneCluster alone;
  return run_experiment(config, alone);
}

/// For main(): parses the command line over `defaults`, runs, and turns errors into one line. The exit code
/// is 1 for an error; 0 else, so for a run that was stopped by request, too. The program is started again first,
/// so that OpenMP's threads wait without spinning (core/passive_waits.hpp).
template <class P>
int experiment_main(int argc, char** argv, const Config<P>& defaults = {}) {
  const io::SafeStreams streams;
  wait_passively(argv);
  try {
    const auto config = parse_command_line<P>(argc, argv, defaults);
    if (!config) return 0;                                     // --help and --print-config have answered
    if constexpr (buildable<P>()) run_experiment<P>(*config);  // else that error is enough
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 1;
  }
}

}  // namespace dvla
