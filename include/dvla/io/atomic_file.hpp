// A file that appears whole or not at all: temporary file in the same folder, fsync, rename, fsync of the
// folder. What it does not do: keep owner, mode or links of a file it replaces (a symbolic link is replaced,
// not followed), or lock out a second writer of the same path (the last rename wins; each result is whole).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <string_view>

#include "dvla/io/file_descriptor.hpp"

namespace dvla::io {

/// Names of temporary files start so. One that a killed process left behind may be deleted.
inline constexpr std::string_view temporary_prefix = ".dvla-tmp-";

/// Collects bytes for `path` and shows them there on commit(). Without commit(), or after any failure before
/// the rename, the old file is untouched and the temporary is gone. Every failure throws Error naming path
/// and cause. One thread at a time; objects for the same path do not disturb each other.
class AtomicFile {
 public:
  /// The folder must exist. Creates the temporary file at once, so that a bad folder fails early.
  explicit AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
    if (!path_.has_filename())
      throw Error("cannot write '" + path_.string() + "': the path ends in a folder, give a file name");
    static std::atomic<std::uint64_t> counter{0};
    constexpr int attempts = 1000;  // Left-overs of a killed process with the same process id.
    for (int attempt = 0; attempt < attempts && !file_.is_open(); ++attempt) {
      temporary_ = folder() / (std::string(temporary_prefix) + std::to_string(::getpid()) + "-" +
                               std::to_string(counter.fetch_add(1)));
      file_ = detail::open_file(temporary_, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW);
      if (!file_.is_open() && errno != EEXIST) break;
    }
    if (!file_.is_open()) detail::throw_errno("create a temporary file to write", path_);
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() { discard(); }

  void write(std::span<const std::byte> bytes) {
    if (!file_.is_open())
      throw Error("cannot write '" + path_.string() + "': it is already committed or failed");
    while (!bytes.empty()) {
      const std::ptrdiff_t written = detail::write_some(file_.get(), bytes);
      if (written < 0) fail("write", errno);
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }

  /// Makes the content durable, then visible. If only the last step fails (fsync of the folder), the new
  /// content is already in place and the error says so.
  void commit() {
    if (!file_.is_open())
      throw Error("cannot commit '" + path_.string() + "': it is already committed or failed");
    if (::fsync(file_.get()) != 0) fail("fsync", errno);
    if (const int code = file_.close(); code != 0) fail("close", code);
    if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail("rename a temporary file to", errno);
    temporary_.clear();
    const detail::FileDescriptor folder_descriptor = detail::open_file(folder(), O_RDONLY | O_DIRECTORY);
    // Some network file systems have no fsync for folders and answer EINVAL: nothing more can be done there.
    if (!folder_descriptor.is_open() || (::fsync(folder_descriptor.get()) != 0 && errno != EINVAL))
      detail::throw_errno(
          "fsync the folder after writing (the new file is in place, but may not survive a crash)", path_);
  }

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path folder() const { return path_.has_parent_path() ? path_.parent_path() : "."; }
  void discard() {
    file_.close();
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
    temporary_.clear();
  }
  [[noreturn]] void fail(const char* what, int code) {
    discard();
    detail::throw_errno(what, path_, code);
  }

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  detail::FileDescriptor file_;
};

/// The whole content at once. Throws Error as AtomicFile does.
inline void write_file(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}
inline void write_file(const std::filesystem::path& path, std::string_view text) {
  write_file(path, std::as_bytes(std::span(text)));
}

}  // namespace dvla::io
