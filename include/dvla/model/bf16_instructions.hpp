// Which instructions for bfloat16 this processor has: without any, products of a model's bfloat16 matrices are
// several times slower than those of float32, which models then take instead. From /proc/cpuinfo.
#pragma once

#include <string>
#include <string_view>

#include "dvla/core/process_limits.hpp"

namespace dvla {

/// "AMX", "AVX-512", "Arm", or "none".
inline std::string_view bf16_instructions() {
  static const std::string_view found = [] {
    const std::string text = detail::text_of("/proc/cpuinfo").value_or("");
    const auto has = [&](const char* flag) { return text.find(flag) != text.npos; };
    return has(" amx_bf16") ? "AMX" : has(" avx512_bf16") ? "AVX-512" : has(" bf16") ? "Arm" : "none";
  }();
  return found;
}

}  // namespace dvla
