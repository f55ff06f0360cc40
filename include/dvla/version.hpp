// The version of dvla. DVLA_VERSION is the library's only public macro: major * 10000 + minor * 100 + patch.
#pragma once

#include <string_view>

#define DVLA_VERSION 200

namespace dvla {

inline constexpr std::string_view library_version = "0.2.0";

}  // namespace dvla
