// What makes a model's tokens of a text. Here the contract and the one kind that needs no file; sentence_piece.hpp and
// byte_level_bpe.hpp read files, and open_tokenizer.hpp chooses between them. Nothing turns tokens into text: ids of actions would
// not come back from it as they were.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"

namespace dvla {

/// What a tokeniser says of itself.
struct TokenizerFacts {
  std::string name;                     ///< its kind and file, for messages
  std::int64_t vocabulary = 0;          ///< all tokens are in [0, vocabulary)
  std::optional<std::int64_t> begin{};  ///< of a text, as its file has it
  std::optional<std::int64_t> blank{};  ///< a blank alone: Llama's 29871
};

/// Several threads may use one object at a time.
class Tokenizer {
 public:
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;
  virtual ~Tokenizer() = default;

  /// The text's own tokens: nothing stands before or behind them. Throws Error where the text is no UTF-8 and the tokeniser
  /// reads characters.
  virtual std::vector<std::int64_t> encode(std::string_view text) const = 0;
  const TokenizerFacts& facts() const { return facts_; }

 protected:
  Tokenizer() = default;
  void need_utf8(std::string_view text) const {
    if (const std::size_t good = detail::utf8_length(text); good < text.size())
      throw Error(facts_.name, ": byte ", good, " of the text '", detail::one_line(text), "' is no UTF-8");
  }

  TokenizerFacts facts_;
};

/// A token a byte: those that SentencePiece has for what it has no other for, behind three of its own. For models without a
/// checkpoint.
class ByteTokens final : public Tokenizer {
 public:
  ByteTokens() { facts_ = {"bytes", 3 + 256, 1, 3 + ' '}; }

  std::vector<std::int64_t> encode(std::string_view text) const override {
    std::vector<std::int64_t> tokens;
    for (const char byte : text) tokens.push_back(3 + static_cast<unsigned char>(byte));
    return tokens;
  }
};

}  // namespace dvla
