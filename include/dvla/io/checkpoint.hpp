// Checkpoints: one safetensors file per step (weights and counters as tensors; JSON texts as metadata),
// written whole or not at all, found again by scanning. It has parts beside it, the optimiser's state, which
// are written first. A large one is several files and an index (safetensors.hpp). What the tensors mean is
// the caller's. No checksum over the data: fsync before rename keeps torn files from appearing under a
// checkpoint's name.
#pragma once

#include <charconv>
#include <functional>
#include <iostream>

#include "dvla/io/safetensors.hpp"

namespace dvla::io {

/// What is saved: views of the caller's data, and texts (pipeline description, config). Keys that begin with
/// "dvla." are the library's.
struct Checkpoint {
  std::vector<TensorToWrite> tensors;
  std::map<std::string, std::string> metadata;
};

/// A checkpoint that was found sound. The file stays mapped while this lives.
struct LoadedCheckpoint {
  std::int64_t step = 0;
  SafetensorsFile file;
};

/// The newest sound checkpoint, if any, and one sentence for each newer one that was passed over: show them.
struct LatestCheckpoint {
  std::optional<LoadedCheckpoint> checkpoint;
  std::vector<std::string> warnings;
};

/// A folder of step-<n>.safetensors files, or their indexes. One writer at a time; readers may come at any moment.
class CheckpointFolder {
 public:
  static constexpr std::string_view format_key = "dvla.checkpoint_format";
  static constexpr std::string_view format_version = "2";
  /// Of the metadata: how many parts a checkpoint has.
  static constexpr std::string_view parts_key = "shards";

  /// Is told, in one sentence, what save() could not tidy up.
  using Warn = std::function<void(const std::string&)>;
  static void to_standard_error(const std::string& warning) { std::cerr << "warning: " + warning + "\n"; }

  /// keep_last >= 1: how many checkpoints save() leaves, its own included. Files of more than `file_bytes` are
  /// cut. Throws ConfigError.
  explicit CheckpointFolder(std::filesystem::path folder, int keep_last = 3,
                            std::uint64_t file_bytes = shard_bytes, Warn warn = to_standard_error)
      : folder_(std::move(folder)), keep_last_(keep_last), file_bytes_(file_bytes), warn_(std::move(warn)) {
    if (keep_last < 1)
      throw ConfigError("keep_last = " + std::to_string(keep_last) + " for the checkpoints in '" +
                        folder_.string() + "': it must be at least 1");
  }

  std::filesystem::path path_of(std::int64_t step) const {
    return folder_ / ("step-" + std::to_string(step) + ".safetensors");
  }

  /// Where part `part` of `parts` of the checkpoint at `path` lies.
  static std::filesystem::path part_path(const std::filesystem::path& path, int part, int parts) {
    const std::string name = path.filename().string();
    return path.parent_path() / (name.substr(0, name.rfind(suffix)) + ".actor-" + std::to_string(part) +
                                 "-of-" + std::to_string(parts) + std::string(suffix));
  }
  /// Writes it, before the checkpoint itself.
  void save_part(std::int64_t step, int part, int parts, std::span<const TensorToWrite> tensors) const {
    make_folder();
    write_safetensors(part_path(path_of(step), part, parts), tensors,
                      {{std::string(format_key), std::string(format_version)}}, file_bytes_);
  }

  /// Writes the checkpoint (the folder is made if need be); returns its path once it is durable. Only then
  /// deletes: sound older ones beyond keep_last, damaged older ones, parts of these and of those that never were
  /// complete, and temporary files of killed processes. What cannot be read or deleted now stays and is no more
  /// than a warning.
  /// Checkpoints of later steps stay until this run has passed them (see remove_after). Throws Error.
  std::filesystem::path save(std::int64_t step, const Checkpoint& checkpoint) const {
    if (step < 0)
      throw Error("cannot save a checkpoint of step " + std::to_string(step) + ": steps begin at 0");
    std::map<std::string, std::string> metadata = checkpoint.metadata;
    metadata[std::string(format_key)] = format_version;
    make_folder();
    const std::filesystem::path path =
        write_safetensors(path_of(step), checkpoint.tensors, metadata, file_bytes_);
    try {
      prune(step);
    } catch (const std::exception& why) {
      warn_(std::string("older checkpoints stay: ") + why.what());
    }
    return path;
  }

  /// Deletes those of later steps with their parts, for a run that went back on purpose: call it when save()
  /// has returned.
  void remove_after(std::int64_t step) const {
    remove_steps([&](std::int64_t other) { return other > step; });
  }

  /// Opens and checks one, its parts too. Throws FormatError when it is damaged, lacks a part or is no
  /// checkpoint of this format, Error otherwise.
  LoadedCheckpoint load(std::int64_t step) const {
    LoadedCheckpoint found{step, open(path_of(step))};
    (void)open_parts(found.file);
    return found;
  }

  /// Opens and checks one by its path, in whichever folder it lies. Throws as load() does.
  static SafetensorsFile open(const std::filesystem::path& path) {
    SafetensorsFile file(path);
    const auto version = file.metadata().find(std::string(format_key));
    if (version == file.metadata().end())
      throw FormatError("'" + path.string() + "' is not a checkpoint: its metadata lacks " +
                        std::string(format_key));
    if (version->second == "1")
      throw FormatError("'" + path.string() +
                        "' is a checkpoint of dvla 0.1, which kept weights and moments as one flat row; this "
                        "version does not read it: train anew, or go on with 0.1");
    if (version->second != format_version)
      throw FormatError("'" + path.string() + "' is a checkpoint of format " +
                        detail::printable(version->second) + ", this program reads format '" +
                        std::string(format_version) + "'");
    return file;
  }

  /// Its parts, in order; none where it has all in itself. Throws FormatError where one is missing or
  /// damaged.
  static std::vector<SafetensorsFile> open_parts(const SafetensorsFile& file) {
    std::vector<SafetensorsFile> out;
    const auto said = file.metadata().find(std::string(parts_key));
    if (said == file.metadata().end()) return out;
    const std::string& text = said->second;
    int parts = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parts);
    if (error != std::errc{} || end != text.data() + text.size() || parts < 1 || parts > 65536)
      throw FormatError("'" + file.path().string() + "' says it has " + detail::printable(text) + " shards");
    for (int part = 0; part < parts; ++part) {
      const std::filesystem::path path = part_path(file.path(), part, parts);
      std::error_code code;
      if (!std::filesystem::exists(detail::weights_at(path), code))
        throw FormatError("'" + file.path().string() + "' lacks its part '" + path.filename().string() + "'");
      out.push_back(open(path));
    }
    return out;
  }

  /// The newest sound one. Damaged ones, and those that lack a part, are passed over with a warning. A
  /// folder that is missing has none.
  LatestCheckpoint latest() const {
    LatestCheckpoint result;
    for (const std::int64_t step : steps()) {
      try {
        result.checkpoint.emplace(load(step));
        break;
      } catch (const FormatError& error) {
        result.warnings.push_back(std::string("passed over a checkpoint: ") + error.what());
      }
    }
    return result;
  }

  /// Steps of all files with a checkpoint's name, sound or not, newest first.
  std::vector<std::int64_t> steps() const {
    std::set<std::int64_t, std::greater<>> out;
    for_each_name([&](const std::string& name) {
      if (const auto [step, whole] = place_of(name); whole) out.insert(step);
    });
    return {out.begin(), out.end()};
  }

 private:
  static constexpr std::string_view suffix = ".safetensors";

  void make_folder() const {
    std::error_code code;
    std::filesystem::create_directories(folder_, code);
    if (code) detail::throw_errno("create the checkpoint folder", folder_, code.value());
  }
  /// Of which step a file of that name is, -1 if of none, and whether it is the one that counts on the others.
  static std::pair<std::int64_t, bool> place_of(std::string_view name) {
    const auto digit = [](char each) { return each >= '0' && each <= '9'; };
    if (name.ends_with(index_suffix)) name.remove_suffix(index_suffix.size());
    std::string form;  // of the name, with 0 for every number
    for (const char each : name)
      if (!digit(each) || !form.ends_with('0')) form += digit(each) ? '0' : each;
    const bool whole = form == "step-0.safetensors";
    std::int64_t step = -1;
    if (whole || form == "step-0-0-of-0.safetensors" || form == "step-0.actor-0-of-0.safetensors" ||
        form == "step-0.actor-0-of-0-0-of-0.safetensors")
      std::from_chars(name.data() + 5, name.data() + name.size(), step);
    if (step < 0 || (name[5] == '0' && digit(name[6])))
      return {-1, false};  // nobody else's file is this folder's
    return {step, whole};
  }
  template <class Visit>
  void for_each_name(Visit visit) const {
    std::error_code code;
    std::filesystem::directory_iterator entries(folder_, code);
    if (code == std::errc::no_such_file_or_directory) return;
    for (; !code && entries != std::filesystem::directory_iterator(); entries.increment(code))
      visit(entries->path().filename().string());
    if (code) detail::throw_errno("list the checkpoints in", folder_, code.value());
  }

  void prune(std::int64_t newest) const {
    std::set<std::int64_t> kept, unread;  // the latter may be sound, so they stay and do not count
    for (const std::int64_t step : steps()) {
      if (step >= newest || std::ssize(kept) + 1 >= keep_last_) continue;
      try {
        (void)load(step);
        kept.insert(step);
      } catch (const FormatError&) {
      } catch (const std::exception& why) {
        unread.insert(step);
        warn_(std::string("an older checkpoint stays: ") + why.what());
      }
    }
    remove_names([&](const std::string& name) { return name.starts_with(temporary_prefix); });
    remove_steps(
        [&](std::int64_t step) { return step < newest && !kept.contains(step) && !unread.contains(step); });
  }
  /// All files of such steps, first those that count on the others.
  template <class Goes>
  void remove_steps(Goes goes) const {
    for (const bool first : {true, false})
      remove_names([&](const std::string& name) {
        const auto [step, whole] = place_of(name);
        return step >= 0 && whole == first && goes(step);
      });
  }
  template <class Goes>
  void remove_names(Goes goes) const {
    std::vector<std::filesystem::path> found;
    for_each_name([&](const std::string& name) {
      if (goes(name)) found.push_back(folder_ / name);
    });
    std::string failed;  // the first; the others go nevertheless
    for (const std::filesystem::path& file : found) {
      if (::unlink(file.c_str()) == 0 || errno == ENOENT || !failed.empty()) continue;
      failed = "cannot delete '" + file.string() + "': " + std::generic_category().message(errno);
    }
    if (!failed.empty()) throw Error(failed);
  }

  std::filesystem::path folder_;
  int keep_last_;
  std::uint64_t file_bytes_;
  Warn warn_;
};

/// The checkpoint that `path` means: a file, a folder of checkpoints, or a run's folder, of which the newest
/// sound one is taken; what was passed over is said on standard error.
inline SafetensorsFile open_checkpoint(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(path)) return CheckpointFolder::open(path);
  const fs::path folder = fs::is_directory(path / "checkpoint") ? path / "checkpoint" : path;
  LatestCheckpoint latest = CheckpointFolder(folder).latest();
  for (const std::string& warning : latest.warnings) CheckpointFolder::to_standard_error(warning);
  if (!latest.checkpoint)
    throw ConfigError("checkpoint '" + path.string() + "': there is no sound checkpoint in '" +
                      folder.string() + "'");
  return std::move(latest.checkpoint->file);
}

/// Weights of whatever origin: the checkpoint that open_checkpoint means, or files of a public model, as
/// SafetensorsFile finds them.
inline SafetensorsFile open_weights(const std::filesystem::path& path) {
  const std::filesystem::path file = detail::weights_at(path);
  if (std::filesystem::is_directory(file)) return open_checkpoint(path);
  SafetensorsFile weights(file);
  if (weights.metadata().contains(std::string(CheckpointFolder::format_key)))
    return CheckpointFolder::open(file);
  return weights;
}

}  // namespace dvla::io
