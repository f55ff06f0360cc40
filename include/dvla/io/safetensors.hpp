// safetensors files: a read-only mapped reader and an atomic writer (Debian has no library for them).
// The reader checks the whole header (safetensors_header.hpp) before it hands out anything. It does not read
// shard indexes (model.safetensors.index.json) and does not convert element types.
#pragma once

#include <sys/mman.h>

#include <concepts>
#include <type_traits>

#include "dvla/io/atomic_file.hpp"
#include "dvla/io/safetensors_header.hpp"

namespace dvla::io {

/// The element type of T. F16, BF16 and BOOL have no C++ type here: use the bytes.
template <class T>
constexpr Dtype dtype_of() {
  static_assert((std::is_arithmetic_v<T> && !std::same_as<T, bool> &&
                 !std::same_as<T, char>)&&!std::same_as<T, long double>,
                "dtype_of<T>: T must be float, double or a sized integer");
  if constexpr (std::same_as<T, double>)
    return Dtype::F64;
  else if constexpr (std::same_as<T, float>)
    return Dtype::F32;
  else if constexpr (std::is_signed_v<T>)
    return sizeof(T) == 8   ? Dtype::I64
           : sizeof(T) == 4 ? Dtype::I32
           : sizeof(T) == 2 ? Dtype::I16
                            : Dtype::I8;
  else
    return sizeof(T) == 8   ? Dtype::U64
           : sizeof(T) == 4 ? Dtype::U32
           : sizeof(T) == 2 ? Dtype::U16
                            : Dtype::U8;
}

/// A tensor inside a mapped file; valid while the SafetensorsFile lives. Row-major, contiguous.
struct TensorView {
  Dtype dtype{};
  std::span<const std::int64_t> shape;
  std::span<const std::byte> bytes;
  std::size_t elements() const { return bytes.size() / dtype_bytes(dtype); }
};

/// A file mapped read-only. Reading is thread-safe. Replace such files by rename (write_safetensors does):
/// whoever shortens a mapped file in place kills its readers with SIGBUS, as with every mapping.
class SafetensorsFile {
 public:
  /// Throws Error when the file cannot be opened, FormatError when it is not a sound safetensors file.
  explicit SafetensorsFile(std::filesystem::path path) : path_(std::move(path)) {
    // O_NONBLOCK: a named pipe must be refused, not waited for.
    const detail::FileDescriptor file = detail::open_file(path_, O_RDONLY | O_NONBLOCK);
    if (!file.is_open()) detail::throw_errno("open", path_);
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) detail::throw_errno("stat", path_);
    if (!S_ISREG(status.st_mode))
      throw FormatError("'" + path_.string() + "' is not a sound safetensors file: it is " +
                        (S_ISDIR(status.st_mode) ? "a folder" : "not a regular file"));
    mapping_ = Mapping(file.get(), static_cast<std::size_t>(status.st_size), path_);
    header_ = parse_safetensors(mapping_.bytes(), path_.string());
    for (std::size_t i = 0; i < header_.tensors.size(); ++i) index_.emplace(header_.tensors[i].name, i);
  }

  const std::filesystem::path& path() const { return path_; }
  /// In the order of the data.
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const TensorInfo& tensor : header_.tensors) out.push_back(tensor.name);
    return out;
  }
  bool contains(std::string_view name) const { return index_.find(name) != index_.end(); }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  /// Throws FormatError when there is none of that name.
  TensorView tensor(std::string_view name) const {
    const auto found = index_.find(name);
    if (found == index_.end())
      throw FormatError("'" + path_.string() + "' has no tensor " + detail::printable(name) + " among its " +
                        std::to_string(index_.size()));
    const TensorInfo& info = header_.tensors[found->second];
    return {info.dtype, info.shape,
            mapping_.bytes().subspan(header_.data_offset + info.begin, info.end - info.begin)};
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
  class Mapping {
   public:
    Mapping() = default;
    Mapping(int descriptor, std::size_t size, const std::filesystem::path& path) : size_(size) {
      if (size == 0) return;  // mmap refuses empty files; the parser says what is wrong with them.
      address_ = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
      if (address_ == MAP_FAILED) {
        address_ = nullptr;
        detail::throw_errno("map", path);
      }
    }
    Mapping(Mapping&& other) noexcept
        : address_(std::exchange(other.address_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Mapping& operator=(Mapping&& other) noexcept {
      std::swap(address_, other.address_);
      std::swap(size_, other.size_);
      return *this;
    }
    ~Mapping() {
      if (address_ != nullptr) ::munmap(address_, size_);
    }
    std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(address_), size_}; }

   private:
    void* address_ = nullptr;
    std::size_t size_ = 0;
  };

  std::filesystem::path path_;
  Mapping mapping_;
  SafetensorsHeader header_;
  std::map<std::string, std::size_t, std::less<>> index_;
};

/// What goes into a file; `bytes` is row-major and stays the caller's.
struct TensorToWrite {
  std::string name;
  Dtype dtype{};
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

/// Convenience for typed data.
template <class T>
TensorToWrite tensor_to_write(std::string name, std::vector<std::int64_t> shape, std::span<const T> data) {
  return {std::move(name), dtype_of<T>(), std::move(shape), std::as_bytes(data)};
}

/// Writes the file atomically (atomic_file.hpp). Wide element types come first and the header is padded to 8
/// bytes, so every tensor is aligned. Throws Error on a size that does not fit dtype and shape, a name that
/// is doubled, reserved or not UTF-8, and on failures of the disk; the old file then stays.
inline void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata = {}) {
  const auto refuse = [&](const std::string& why) -> void {
    throw Error("cannot write '" + path.string() + "': " + why);
  };
  std::vector<const TensorToWrite*> order;
  for (const TensorToWrite& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const TensorToWrite* a, const TensorToWrite* b) {
    return dtype_bytes(a->dtype) > dtype_bytes(b->dtype);
  });

  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const TensorToWrite* tensor : order) {
    const std::string subject = "tensor " + detail::printable(tensor->name) + " ";
    if (tensor->name == "__metadata__") refuse(subject + "has the one name that is reserved");
    if (header.contains(tensor->name)) refuse(subject + "is given twice");
    const std::optional<std::uint64_t> bytes = detail::tensor_bytes(tensor->dtype, tensor->shape);
    if (!bytes) refuse(subject + "has a negative dimension or a size beyond 64 bits");
    if (*bytes != tensor->bytes.size())
      refuse(subject + "needs " + std::to_string(*bytes) + " bytes by dtype and shape, but " +
             std::to_string(tensor->bytes.size()) + " are given");
    header[tensor->name] = {{"dtype", dtype_name(tensor->dtype)},
                            {"shape", tensor->shape},
                            {"data_offsets", {offset, offset + *bytes}}};
    offset += *bytes;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    refuse("a tensor's name or a metadata entry is not UTF-8");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t length = text.size();
  if (length > max_safetensors_header_bytes) refuse("its header would exceed 100 MB");

  AtomicFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(text);
  for (const TensorToWrite* tensor : order) file.write(tensor->bytes);
  file.commit();
}

}  // namespace dvla::io
