// Where a training run leaves its files: runs/<name>/ with fixed names inside. Creates, checks and locks the
// folder; does not write the files.
#pragma once

#include <sys/file.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/io/file_descriptor.hpp"
#include "dvla/io/run_name.hpp"

namespace dvla::io {

/// What may be there already.
enum class RunFolderMode {
  fresh,     ///< nothing: a folder that is not empty is refused
  resume,    ///< an earlier run, which is continued: it must exist, and everything stays
  overwrite  ///< an earlier run: the files that this library writes are deleted first, others stay
};

/// Holds a folder for one process, by flock(2) on a file in it: the kernel lets go when the process ends, however
/// that happens. On a file system without locks it holds nothing, and says why.
class FolderLock {
 public:
  static constexpr const char* file_name = ".dvla-lock";

  FolderLock() = default;
  /// Throws Error when the file cannot be made; see is_taken().
  explicit FolderLock(const std::filesystem::path& folder) : path_(folder / file_name) {
    for (struct stat status{}; !file_.is_open() || status.st_nlink == 0;) {  // deleted by whoever held it
      file_ = detail::open_file(path_, O_RDWR | O_CREAT | O_NOFOLLOW);
      if (!file_.is_open()) detail::throw_errno("create", path_);
      if (::flock(file_.get(), LOCK_EX | LOCK_NB) != 0) {
        taken_ = errno == EWOULDBLOCK;
        if (!taken_)
          why_not_ = "'" + path_.string() +
                     "' cannot be locked, so a second run in this folder goes unnoticed: " +
                     std::generic_category().message(errno);
        file_.close();
        return;
      }
      if (::fstat(file_.get(), &status) != 0) detail::throw_errno("stat", path_);
    }
  }
  FolderLock(FolderLock&&) noexcept = default;
  FolderLock& operator=(FolderLock&& other) noexcept {
    release();
    path_ = std::move(other.path_);
    file_ = std::move(other.file_);
    taken_ = other.taken_;
    why_not_ = std::move(other.why_not_);
    return *this;
  }
  ~FolderLock() { release(); }

  /// Whether somebody holds the folder now; holds nothing and changes nothing.
  static bool is_held(const std::filesystem::path& folder) {
    const auto file = detail::open_file(folder / file_name, O_RDWR | O_NOFOLLOW);
    return file.is_open() && ::flock(file.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  }
  /// By another one.
  bool is_taken() const { return taken_; }
  /// Why nothing is held, though it is free; empty where it is held.
  const std::string& why_not() const { return why_not_; }
  void release() {
    if (file_.is_open()) ::unlink(path_.c_str());
    file_.close();
  }

 private:
  std::filesystem::path path_;
  detail::FileDescriptor file_;
  bool taken_ = false;
  std::string why_not_;
};

/// The files of one run. Making one creates <root>/<name>/ and checkpoint/ inside; while it lives no other can be
/// made there.
struct RunFolder {
  static constexpr const char* job_name = "job.txt";

  std::filesystem::path folder;
  /// A TensorBoard file that does not exist yet; each start of a run has its own.
  std::filesystem::path events{};
  std::filesystem::path trace = folder / "trace.json", success_svg = folder / "success.svg",
                        before_gif = folder / "before.gif", after_gif = folder / "after.gif",
                        config = folder / "config.json", report = folder / "report.json",
                        page = folder / "index.html", checkpoint = folder / "checkpoint";
  std::filesystem::path job = folder / job_name;  ///< names the job that writes here, for its own restarts
  FolderLock lock{};

  /// The recording of what was trained from that batch on.
  std::filesystem::path hand_overs(std::int64_t first_batch) const {
    return folder / ("hand_overs" + (first_batch > 0 ? "-" + std::to_string(first_batch) : "") + ".json");
  }

  static ConfigError at_work(const std::string& name, const std::filesystem::path& folder) {
    return ConfigError("run name '" + name + "': another run is at work in '" + folder.string() +
                       "'; wait until it ends, stop it, or choose another name");
  }
  /// What open() refuses of a folder that stands there; changes nothing. Returns whether anything is in it.
  static bool check(const std::filesystem::path& root, const std::string& name, RunFolderMode mode) {
    namespace fs = std::filesystem;
    check_run_name(name);
    const fs::path folder = root / name;
    try {
      const bool exists = fs::exists(fs::symlink_status(folder));
      if (exists && !fs::is_directory(folder))
        throw ConfigError("run name '" + name + "': '" + folder.string() + "' exists and is not a folder");
      const bool used = exists && !fs::is_empty(folder);
      if (used && mode == RunFolderMode::fresh)
        throw ConfigError("run name '" + name + "': '" + folder.string() +
                          "' is not empty; choose another name, or ask to resume or to overwrite it");
      if (!used && mode == RunFolderMode::resume)
        throw ConfigError("run name '" + name + "': there is nothing to resume in '" + folder.string() + "'");
      if (used && FolderLock::is_held(folder)) throw at_work(name, folder);
      return used;
    } catch (const fs::filesystem_error& error) {
      throw unprepared(folder, error);
    }
  }
  /// `name`: see check_run_name. Throws ConfigError for a bad name, a folder that `mode` does not allow or in
  /// which another run is at work, Error when the disk refuses.
  static RunFolder open(const std::filesystem::path& root, const std::string& name, RunFolderMode mode) {
    namespace fs = std::filesystem;
    const bool used = check(root, name, mode);
    RunFolder run{root / name};
    try {
      fs::create_directories(run.folder);
      run.lock = FolderLock(run.folder);
      if (run.lock.is_taken()) throw at_work(name, run.folder);
      if (mode == RunFolderMode::overwrite && used) run.remove_own_files();
      fs::create_directories(run.checkpoint);
      // TensorBoard reads a run's event files in the order of their names.
      using seconds = std::chrono::seconds;
      const auto now = std::chrono::system_clock::now().time_since_epoch();
      auto start = std::chrono::duration_cast<seconds>(now).count();
      do run.events = run.folder / ("events.out.tfevents." + std::to_string(start++) + ".dvla");
      while (fs::exists(run.events));
    } catch (const fs::filesystem_error& error) {
      throw unprepared(run.folder, error);
    }
    return run;
  }

 private:
  static Error unprepared(const std::filesystem::path& folder,
                          const std::filesystem::filesystem_error& error) {
    return Error("cannot prepare the run folder '" + folder.string() + "': " + error.code().message());
  }
  void remove_own_files() const {
    namespace fs = std::filesystem;
    for (const fs::path& file : {trace, success_svg, before_gif, after_gif, config, report, page, job})
      fs::remove(file);
    for (const char* extension : {".csv", ".gnuplot"})
      fs::remove(fs::path(success_svg).replace_extension(extension));
    const auto remove_matching = [](const fs::path& in, const std::string& prefix,
                                    const std::string& suffix) {
      if (!fs::is_directory(in)) return;
      std::vector<fs::path> found;
      for (const fs::directory_entry& entry : fs::directory_iterator(in)) {
        const std::string file = entry.path().filename().string();
        if (file.starts_with(prefix) && file.ends_with(suffix) && !entry.is_directory())
          found.push_back(entry.path());
      }
      for (const fs::path& file : found) fs::remove(file);
    };
    remove_matching(folder, "events.out.tfevents.", ".dvla");
    remove_matching(folder, "hand_overs", ".json");
    remove_matching(checkpoint, "step-", ".safetensors");
  }
};

}  // namespace dvla::io
