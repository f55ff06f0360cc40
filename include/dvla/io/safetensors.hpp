// safetensors files: a read-only mapped reader and an atomic writer (Debian has no library for them), of one
// file or of several with an index (safetensors_index.hpp). The reader checks all headers
// (safetensors_header.hpp) before it hands out anything. It does not convert element types.
#pragma once

#include <sys/mman.h>

#include <concepts>
#include <cstdio>
#include <deque>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#include "dvla/io/atomic_file.hpp"
#include "dvla/io/safetensors_header.hpp"
#include "dvla/io/safetensors_index.hpp"

namespace dvla::io {

/// The element type of T. F16, BF16 and BOOL have no C++ type here: use the bytes.
template <class T>
constexpr Dtype dtype_of() {
  static_assert((std::is_arithmetic_v<T> && !std::same_as<T, bool> &&
                 !std::same_as<T, char>)&&!std::same_as<T, long double>,
                "dtype_of<T>: T must be float, double or a sized integer");
  constexpr char kind = std::is_floating_point_v<T> ? 'F' : std::is_signed_v<T> ? 'I' : 'U';
  Dtype dtype{};
  while (dtype_name(dtype)[0] != kind || dtype_bytes(dtype) != sizeof(T))
    dtype = static_cast<Dtype>(static_cast<int>(dtype) + 1);
  return dtype;
}

/// A tensor inside a mapped file; valid while the SafetensorsFile lives. Row-major, contiguous.
struct TensorView {
  Dtype dtype{};
  std::span<const std::int64_t> shape;
  std::span<const std::byte> bytes;
  std::size_t elements() const { return bytes.size() / dtype_bytes(dtype); }
};

namespace detail {
/// The file that a path means: of a folder the weights in it, by the hub's name; of one that is not there its
/// index, if that is.
inline std::filesystem::path weights_at(const std::filesystem::path& path) {
  std::error_code code;
  if (std::filesystem::is_directory(path, code)) {
    const std::filesystem::path inside = weights_at(path / "model.safetensors");
    return std::filesystem::exists(inside, code) ? inside : path;
  }
  std::filesystem::path index = path;
  index += index_suffix;
  return !std::filesystem::exists(path, code) && std::filesystem::exists(index, code) ? index : path;
}
}  // namespace detail

/// A file, or the files of an index, mapped read-only, or read into memory where the file system maps none
/// (ENODEV). Reading is thread-safe. Replace such files by rename
/// (write_safetensors does): whoever shortens a mapped file in place kills its readers with SIGBUS, as with
/// every mapping.
class SafetensorsFile {
 public:
  /// `path`: a file, an index, the file that an index stands in for, or a folder with model.safetensors or
  /// its index. Throws Error when it cannot be opened, FormatError when it is not sound or lacks a file.
  explicit SafetensorsFile(const std::filesystem::path& path) : path_(detail::weights_at(path)) {
    if (!path_.native().ends_with(index_suffix)) {
      add(path_);
      for (const TensorInfo& tensor : files_[0].header.tensors)
        index_.emplace(tensor.name, Place{0, &tensor});
      return;
    }
    const Mapping text = map(path_);
    const auto refuse = [&](const std::string& why) -> void {
      throw FormatError("'" + path_.string() + "' is not a sound index of safetensors files: " + why);
    };
    const std::map<std::string, std::string> file_of = parse_safetensors_index(
        {static_cast<const char*>(text.get()), text.get_deleter().size}, path_.string());
    std::set<std::string> files;
    for (const auto& [tensor, file] : file_of) files.insert(file);
    for (const std::string& file : files) {
      std::error_code code;
      if (!std::filesystem::exists(path_.parent_path() / file, code))
        refuse("the file " + detail::printable(file) + " is missing");
      add(path_.parent_path() / file);
      for (const TensorInfo& tensor : files_.back().header.tensors) {
        const auto said = file_of.find(tensor.name);
        if (said == file_of.end()) continue;
        if (said->second != file)
          refuse("tensor " + detail::printable(tensor.name) + " lies in the file " + detail::printable(file) +
                 ", and by the index in " + detail::printable(said->second));
        index_.emplace(tensor.name, Place{files_.size() - 1, &tensor});
      }
    }
    for (const auto& [tensor, file] : file_of)
      if (!contains(tensor))
        refuse("tensor " + detail::printable(tensor) + " is not in the file " + detail::printable(file));
  }

  /// The file, or the index.
  const std::filesystem::path& path() const { return path_; }
  /// In the order of the data.
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const File& file : files_)
      for (const TensorInfo& tensor : file.header.tensors)
        if (contains(tensor.name)) out.push_back(tensor.name);
    return out;
  }
  bool contains(std::string_view name) const { return index_.find(name) != index_.end(); }
  /// Of several files the first one's.
  const std::map<std::string, std::string>& metadata() const { return files_.front().header.metadata; }

  /// Throws FormatError when there is none of that name.
  TensorView tensor(std::string_view name) const {
    const auto found = index_.find(name);
    if (found == index_.end())
      throw FormatError("'" + path_.string() + "' has no tensor " + detail::printable(name) + " among its " +
                        std::to_string(index_.size()));
    const TensorInfo& info = *found->second.info;
    const File& file = files_[found->second.file];
    return {info.dtype, info.shape,
            bytes_of(file.mapping).subspan(file.header.data_offset + info.begin, info.end - info.begin)};
  }

  /// The elements, in place. Throws FormatError when the element type differs or the data is not aligned for
  /// it.
  template <class T>
  std::span<const T> span(std::string_view name) const {
    const TensorView view = tensor(name);
    const std::string subject = "tensor " + detail::printable(name) + " of '" + path_.string() + "' ";
    if (view.dtype != dtype_of<T>())
      throw FormatError(subject + "is " + std::string(dtype_name(view.dtype)) + ", not " +
                        std::string(dtype_name(dtype_of<T>())) + " as the caller wants");
    if (view.bytes.empty()) return {};
    if (reinterpret_cast<std::uintptr_t>(view.bytes.data()) % alignof(T) != 0)
      throw FormatError(subject + "is not aligned to " + std::to_string(alignof(T)) +
                        " bytes (its writer did not pad the header): copy tensor().bytes instead");
    return {reinterpret_cast<const T*>(view.bytes.data()), view.elements()};
  }

 private:
  struct Unmap {
    std::size_t size;
    void operator()(void* address) const { ::munmap(address, size); }
  };
  using Mapping = std::unique_ptr<void, Unmap>;
  static std::span<const std::byte> bytes_of(const Mapping& mapping) {
    return {static_cast<const std::byte*>(mapping.get()), mapping.get_deleter().size};
  }

  struct File {
    Mapping mapping;
    SafetensorsHeader header;
  };
  struct Place {
    std::size_t file;
    const TensorInfo* info;  ///< of that file's header
  };

  static Mapping map(const std::filesystem::path& path) {
    // O_NONBLOCK: a named pipe must be refused, not waited for.
    const detail::FileDescriptor file = detail::open_file(path, O_RDONLY | O_NONBLOCK);
    if (!file.is_open()) detail::throw_errno("open", path);
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) detail::throw_errno("stat", path);
    if (!S_ISREG(status.st_mode))
      throw FormatError("'" + path.string() + "' is not a sound safetensors file: it is " +
                        (S_ISDIR(status.st_mode) ? "a folder without model.safetensors or its index"
                                                 : "not a regular file"));
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size == 0)
      return Mapping(nullptr, {0});  // mmap refuses empty files; the parser says what is wrong with them.
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (address != MAP_FAILED) return Mapping(address, {size});
    if (errno != ENODEV) detail::throw_errno("map", path);
    address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) detail::throw_errno("make room to read", path);
    Mapping memory(address, {size});
    for (std::size_t done = 0; done < size;) {
      const ssize_t count = ::read(file.get(), static_cast<std::byte*>(address) + done, size - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) detail::throw_errno("read", path);
      if (count == 0) throw FormatError("'" + path.string() + "' became shorter while it was read");
      done += static_cast<std::size_t>(count);
    }
    return memory;
  }
  void add(const std::filesystem::path& path) {
    Mapping mapping = map(path);
    SafetensorsHeader header = parse_safetensors(bytes_of(mapping), path.string());
    files_.push_back({std::move(mapping), std::move(header)});
  }

  std::filesystem::path path_;
  std::vector<File> files_;
  std::map<std::string, Place, std::less<>> index_;
};

/// What goes into a file, row-major: `bytes`, and the pieces of `rest` behind them where not all lies in one place. They stay the
/// caller's.
struct TensorToWrite {
  std::string name;
  Dtype dtype{};
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
  std::vector<std::span<const std::byte>> rest{};

  std::uint64_t size() const {
    return std::accumulate(rest.begin(), rest.end(), std::uint64_t{bytes.size()},
                           [](std::uint64_t sum, const auto& piece) { return sum + piece.size(); });
  }
};

/// Convenience for typed data.
template <class T>
TensorToWrite tensor_to_write(std::string name, std::vector<std::int64_t> shape, std::span<const T> data) {
  return {std::move(name), dtype_of<T>(), std::move(shape), std::as_bytes(data)};
}

/// Bytes of tensors that a file holds before the next one begins: the hub's own limit.
inline constexpr std::uint64_t shard_bytes = 5'000'000'000;

/// Writes the file atomically (atomic_file.hpp), or, where tensors have more than `limit` bytes, several in
/// its place, <stem>-00001-of-0000n.safetensors, and their index last; a tensor is never cut. `metadata`
/// stands in each. Wide element types come first and headers are padded to 8 bytes, so every tensor is
/// aligned. Returns the file's or the index's path. Throws Error on a size that does not fit dtype and shape,
/// a name that is doubled, reserved or not UTF-8, and on failures of the disk; what was there then stays (but
/// an index that a new one was to replace, and files that were replaced by then).
inline std::filesystem::path write_safetensors(const std::filesystem::path& path,
                                               std::span<const TensorToWrite> tensors,
                                               const std::map<std::string, std::string>& metadata = {},
                                               std::uint64_t limit = shard_bytes) {
  const auto refuse = [&](const std::string& why) -> void {
    throw Error("cannot write '" + path.string() + "': " + why);
  };
  std::vector<std::vector<const TensorToWrite*>> shards(1);
  std::set<std::string_view> names;
  std::uint64_t total = 0, in_shard = 0;
  for (const TensorToWrite& tensor : tensors) {
    const std::string subject = "tensor " + detail::printable(tensor.name) + " ";
    if (tensor.name == "__metadata__") refuse(subject + "has the one name that is reserved");
    if (!names.insert(tensor.name).second) refuse(subject + "is given twice");
    const std::optional<std::uint64_t> bytes = detail::tensor_bytes(tensor.dtype, tensor.shape);
    if (!bytes) refuse(subject + "has a negative dimension or a size beyond 64 bits");
    if (*bytes != tensor.size())
      refuse(subject + "needs " + std::to_string(*bytes) + " bytes by dtype and shape, but " +
             std::to_string(tensor.size()) + " are given");
    if (in_shard > 0 && in_shard + *bytes > limit) {
      shards.emplace_back();
      in_shard = 0;
    }
    shards.back().push_back(&tensor);
    in_shard += *bytes;
    total += *bytes;
  }
  const auto text_of = [&](const nlohmann::json& json, int indent) {
    try {
      return json.dump(indent);
    } catch (const nlohmann::json::exception&) {
      refuse("a tensor's name or a metadata entry is not UTF-8");
      return std::string();
    }
  };

  const std::string stem = (path.parent_path() / path.stem()).string();
  std::filesystem::path index = path;
  index += index_suffix;
  std::deque<AtomicFile> files;
  nlohmann::json file_of = nlohmann::json::object();
  for (std::vector<const TensorToWrite*>& shard : shards) {
    std::stable_sort(shard.begin(), shard.end(), [](const TensorToWrite* a, const TensorToWrite* b) {
      return dtype_bytes(a->dtype) > dtype_bytes(b->dtype);
    });
    char number[48];
    std::snprintf(number, sizeof number, "-%05zu-of-%05zu", files.size() + 1, shards.size());
    const std::filesystem::path here =
        shards.size() == 1 ? path : std::filesystem::path(stem + number + path.extension().string());
    nlohmann::json header = nlohmann::json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::uint64_t offset = 0;
    for (const TensorToWrite* tensor : shard) {
      header[tensor->name] = {{"dtype", dtype_name(tensor->dtype)},
                              {"shape", tensor->shape},
                              {"data_offsets", {offset, offset + tensor->size()}}};
      offset += tensor->size();
      file_of[tensor->name] = here.filename().string();
    }
    std::string text = text_of(header, -1);
    text.append((8 - text.size() % 8) % 8, ' ');
    const std::uint64_t length = text.size();
    if (length > max_safetensors_header_bytes) refuse("its header would exceed 100 MB");
    AtomicFile& file = files.emplace_back(here);
    file.write(std::as_bytes(std::span(&length, 1)));
    file.write(text);
    for (const TensorToWrite* tensor : shard) {
      file.write(tensor->bytes);
      for (const std::span<const std::byte> piece : tensor->rest) file.write(piece);
    }
  }
  const bool sharded = shards.size() > 1;
  if (sharded) {
    files.emplace_back(index).write(
        text_of({{"metadata", {{"total_size", total}}}, {"weight_map", file_of}}, 2) + "\n");
    ::unlink(index.c_str());  // an older one would name files of both
  }
  for (AtomicFile& file : files) file.commit();
  ::unlink((sharded ? path : index).c_str());  // what was written here in the other form
  return sharded ? index : path;
}

}  // namespace dvla::io
