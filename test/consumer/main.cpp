// What a user's first program sees of dvla::core: no torch, no simulator, no settings but the target's own.
#include <dvla/core/error.hpp>
#include <iostream>

int main() {
  try {
    throw dvla::ConfigError("a sentence");
  } catch (const dvla::Error& error) {
    std::cout << error.what() << '\n';
  }
}
