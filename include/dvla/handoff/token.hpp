// The message that travels between lanes: a few integers. Tensors stay in the pools.
// Design: "Messages are tokens {buffer index, weight version}, trivially copyable".
#pragma once

#include <cstdint>
#include <type_traits>

namespace dvla {

struct Token {
  std::int64_t batch = 0;  ///< which batch this is, counted from 0; one batch makes one weight version
  std::int64_t version =
      0;  ///< sampling: oldest weight version in the batch; after training: the version it made
  std::int32_t buffer = 0;  ///< index of the trajectory buffer that holds the batch
};
static_assert(std::is_trivially_copyable_v<Token> && sizeof(Token) == 24);

}  // namespace dvla
