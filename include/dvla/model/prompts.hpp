// What a vision-language-action model is told, as rows of tokens: the wording is the model's own, the tokens are those of a tokeniser's
// file or, without one, the text's bytes.
//
// A Wording has `name`, for messages, and `prompt(task, state)`; `begins`: whether the tokeniser's begin stands before it; `ends_blank`:
// whether a blank's token stands at its end, if need be one more; `pads_before`: whether padding stands before the text, behind the
// begin, and else behind it; `tells_state`: whether the state is part of it, or may be: then it has `stateless(task)`, too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/observation.hpp"
#include "dvla/model/tokenizers/open_tokenizer.hpp"

namespace dvla::detail {

/// Where a model's prompts have their tokens from, and their place.
struct PromptPlace {
  std::string tokenizer{};   ///< a file or its folder; empty: bytes
  std::int64_t words = 0;    ///< rows of the model's table of words
  std::int64_t padding = 0;  ///< what stands where no text does
  std::int64_t length = 0;   ///< L, tokens; 0: as many as the longest prompt has
  bool with_state = true;    ///< of a wording that has the state in it
};

/// Which tokeniser knobs mean: a path, or nothing for bytes.
template <class Knobs>
std::string tokenizer_of(const Knobs& knobs) {
  if (knobs.tokenizer == "bytes") return {};
  return knobs.tokenizer.empty() ? knobs.checkpoint : knobs.tokenizer;
}

template <class Wording>
class Prompts {
 public:
  /// Throws ConfigError where there is no instruction, a prompt could have more tokens than its place, or the tokeniser is not the
  /// model's; as open_tokenizer throws, too.
  Prompts(const ObservationSpec& spec, const PromptPlace& place)
      : tasks_(spec.instructions),
        padding_(place.padding),
        length_(place.length),
        tells_state_(Wording::tells_state && place.with_state),
        made_of_("a token a byte, which stands in for a tokeniser (--tokenizer names a file)") {
    if (tasks_.empty())
      throw ConfigError(
          Wording::name,
          ": the environment gives no instruction; a vision-language-action model needs at least one");
    if (place.tokenizer.empty())
      tokenizer_ = std::make_unique<ByteTokens>();
    else
      tokenizer_ = open_tokenizer(place.tokenizer);
    const TokenizerFacts& facts = tokenizer_->facts();
    if (!place.tokenizer.empty()) made_of_ = "tokens of " + facts.name;
    if (facts.vocabulary > place.words)
      throw ConfigError(Wording::name, ": ", facts.name, " has ", facts.vocabulary,
                        " tokens, and the model's table of words ", place.words);
    if (Wording::begins && !facts.begin)
      throw ConfigError(Wording::name, ": ", facts.name,
                        " names no token that begins a text, and the model's prompts begin with one");
    if (Wording::ends_blank && !facts.blank)
      throw ConfigError(Wording::name, ": ", facts.name,
                        " has no token for a blank alone, and the model's prompts end with it");
    const std::vector<float> widest(static_cast<std::size_t>(spec.proprioception), widest_number());
    std::vector<std::int64_t> counts;
    for (std::int64_t task = 0; task < tasks(); ++task) {
      counts.push_back(begin() + std::ssize(text_tokens(text(task, widest))));
      if (place.length > 0 && counts.back() > place.length)
        throw ConfigError(Wording::name, ": the instruction '", tasks_[static_cast<std::size_t>(task)],
                          "' and ", spec.proprioception, " numbers of state make up to ", counts.back(),
                          " tokens, and the model takes ", place.length);
    }
    const auto [shortest, longest] = std::ranges::minmax(counts);
    if (length_ == 0) length_ = longest;
    padded_ = tells_state_ || shortest < length_;
  }

  /// The reference's prompt; state: [P].
  std::string text(std::int64_t task, std::span<const float> state) const {
    const std::string& own = tasks_.at(static_cast<std::size_t>(task));
    if constexpr (Wording::tells_state)
      if (!tells_state_) return Wording::stateless(own);
    return Wording::prompt(own, state);
  }
  std::int64_t tasks() const { return std::ssize(tasks_); }
  std::int64_t length() const { return length_; }
  bool padded() const { return padded_; }  ///< a row may be
  /// For people: what makes their tokens.
  std::string note() const { return "prompts: " + made_of_; }
  /// A row of [n, L], and which of its tokens are none of padding.
  void write(std::int64_t task, std::span<const float> state, std::int64_t* to, bool* valid) const {
    const std::vector<std::int64_t> own = text_tokens(text(task, state));
    const std::int64_t padding = length_ - begin() - std::ssize(own);
    if (padding < 0)
      throw Error(Wording::name, ": the prompt of instruction ", task, " has ", length_ - padding,
                  " tokens, and the model takes ", length_);
    std::fill_n(to, length_, padding_);
    std::fill_n(valid, length_, true);
    if (Wording::begins) *to = *tokenizer_->facts().begin;
    std::ranges::copy(own, to + begin() + (Wording::pads_before ? padding : 0));
    std::fill_n(valid + (Wording::pads_before ? begin() : length_ - padding), padding, false);
  }

 private:
  static std::int64_t begin() { return Wording::begins ? 1 : 0; }
  std::vector<std::int64_t> text_tokens(const std::string& prompt) const {
    std::vector<std::int64_t> tokens = tokenizer_->encode(prompt);
    if (const auto blank = tokenizer_->facts().blank;
        Wording::ends_blank && (tokens.empty() || tokens.back() != blank))
      tokens.push_back(*blank);
    return tokens;
  }
  /// That of the state which a prompt needs most tokens for: one of each bin, and one below them all.
  float widest_number() const {
    float widest = 0;
    if constexpr (Wording::tells_state) {
      std::size_t most = 0;
      for (int bin = -1; bin < 256; ++bin) {
        const float number = (static_cast<float>(bin) + 0.5f) / 128 - 1;
        const std::size_t count = tokenizer_->encode(Wording::prompt("", std::span(&number, 1))).size();
        if (count > most) most = count, widest = number;
      }
    }
    return widest;
  }

  std::vector<std::string> tasks_;
  std::int64_t padding_, length_;
  bool tells_state_, padded_ = false;
  std::string made_of_;
  std::unique_ptr<const Tokenizer> tokenizer_;
};

}  // namespace dvla::detail
