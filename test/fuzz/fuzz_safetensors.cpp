// libFuzzer target (clang): the safetensors parser against arbitrary bytes.
//   clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Iinclude
//     test/fuzz/fuzz_safetensors.cpp -o fuzz_safetensors
//   mkdir corpus && cp test/golden/io/golden.safetensors corpus && ./fuzz_safetensors corpus
//   -max_total_time=60
#include "check_safetensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  dvla_test::check_safetensors(std::as_bytes(std::span(data, size)));
  return 0;
}
