// Which instructions for bfloat16 this processor has: without any, products of bfloat16 matrices are several
// times slower than those of float32. From /proc/cpuinfo.
#pragma once

#include <fstream>
#include <string>
#include <string_view>

namespace dvla {

/// "AMX", "AVX-512", "Arm", or "none".
inline std::string_view bf16_instructions() {
  static const std::string_view found = [] {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
      if (!line.starts_with("flags") && !line.starts_with("Features")) continue;
      line += ' ';
      const auto has = [&](const char* flag) { return line.find(flag) != std::string::npos; };
      return has(" amx_bf16 ")      ? std::string_view("AMX")
             : has(" avx512_bf16 ") ? std::string_view("AVX-512")
             : has(" bf16 ")        ? std::string_view("Arm")
                                    : std::string_view("none");
    }
    return std::string_view("none");
  }();
  return found;
}

}  // namespace dvla
