// worker.py, the program of whoever has environments in Python, as text.
#pragma once

#include <string_view>

namespace dvla::detail {

/// The file is Python and a raw string of C++, from its second character on.
inline constexpr std::string_view worker_file =
#include "dvla/environment/python/worker.py"
    ;
inline constexpr std::string_view python_worker = worker_file.substr(1);

}  // namespace dvla::detail
