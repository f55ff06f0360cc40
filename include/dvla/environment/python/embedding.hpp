// Where a program's own Python is plugged in: environment/python/embedded.hpp, if it is included, and nothing otherwise,
// so that a program whose environments run in workers links no Python.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>

namespace dvla::detail {

struct PythonSeat {
  std::string python;         ///< the interpreter whose packages are used
  std::string program;        ///< worker.py
  std::string told;           ///< its knobs, as JSON
  std::span<std::byte> pool;  ///< offsets in what it is told count from here
};

/// Starts the interpreter, unless it runs, and returns what answers there. Null: this program has none.
inline std::function<std::string(const std::string&)> (*embed_python)(const PythonSeat&) = nullptr;

}  // namespace dvla::detail
