// libFuzzer target (clang): the parsers of safetensors headers and of indexes against arbitrary bytes. Built in the preset asan;
// ctest runs it 100,000 times, and a million with the label long (test/CMakeLists.txt). By hand, for as long as one likes:
//   build/asan/test/fuzz_safetensors -max_total_time=3600 -dict=test/fuzz/safetensors.dict build/asan/test/fuzz_corpus
#include <cstdint>

#include "check_safetensors.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
  size = LLVMFuzzerMutate(data, size, most);
  if (seed % 2 == 0) dvla_test::repair_length({reinterpret_cast<char*>(data), size});
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  dvla_test::check_safetensors(std::as_bytes(std::span(data, size)));
  dvla_test::check_safetensors_index({reinterpret_cast<const char*>(data), size});
  return 0;
}
