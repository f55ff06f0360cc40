// Where a program's own Python is plugged in: environment/python/embedded.hpp, if it is included, and nothing otherwise,
// so that a program whose environments run in workers links no Python.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "dvla/environment/apart_service.hpp"

namespace dvla::detail {

struct PythonSeat {
  std::string python;         ///< the interpreter whose packages are used
  std::string told;           ///< worker.py's knobs, as JSON
  std::span<std::byte> pool;  ///< offsets in what it is told count from here
};

/// Starts the interpreter, unless it runs, and returns who answers there. Null: this program has none.
inline std::unique_ptr<ApartService> (*embed_python)(const PythonSeat&) = nullptr;

}  // namespace dvla::detail
