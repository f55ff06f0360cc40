// Instructions as word tokens: lower-cased words, hashed (FNV-1a) into a small vocabulary. Words of one table
// that hash to the same slot are told apart by moving the later one to the next free slot, so two
// instructions that differ in a word never look alike. Slot 0 is padding. Not a language model's tokenizer.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "dvla/core/error.hpp"

namespace dvla::detail {

inline constexpr std::int64_t vocabulary_size = 128;

/// Row i holds instruction i's word slots, padded with 0 to the longest instruction's length.
struct InstructionTable {
  std::int64_t length = 0;           ///< L, words
  std::vector<std::int64_t> tokens;  ///< [instructions, L]
};

inline std::vector<std::string> split_words(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  for (const char character : text + ' ') {
    const auto code = static_cast<unsigned char>(character);
    if (std::isalnum(code) != 0 || code >= 0x80) {
      word += static_cast<char>(std::tolower(code));
    } else if (!word.empty()) {
      words.push_back(std::move(word));
      word.clear();
    }
  }
  return words;
}

inline std::uint64_t fnv1a(const std::string& word) {
  std::uint64_t hash = 0xCBF29CE484222325ull;
  for (const char character : word) {
    hash = (hash ^ static_cast<unsigned char>(character)) * 0x100000001B3ull;
  }
  return hash;
}

/// Throws ConfigError if an instruction has no word or the table has more words than the vocabulary.
inline InstructionTable tokenise(const std::vector<std::string>& instructions) {
  InstructionTable table;
  std::vector<std::vector<std::string>> texts;
  for (const std::string& instruction : instructions) {
    texts.push_back(split_words(instruction));
    if (texts.back().empty()) {
      throw ConfigError("TinyVLA: instruction " + std::to_string(texts.size() - 1) +
                        " of the environment has no word; give it a sentence");
    }
    table.length = std::max(table.length, static_cast<std::int64_t>(texts.back().size()));
  }
  std::map<std::string, std::int64_t> slots;
  std::vector<bool> taken(static_cast<std::size_t>(vocabulary_size), false);
  for (const auto& text : texts) {
    for (const std::string& word : text) {
      if (slots.contains(word)) continue;
      if (static_cast<std::int64_t>(slots.size()) == vocabulary_size - 1) {
        throw ConfigError("TinyVLA: the environment's instructions use more than " +
                          std::to_string(vocabulary_size - 1) + " different words; use fewer");
      }
      auto slot = static_cast<std::size_t>(fnv1a(word) % (vocabulary_size - 1));
      while (taken[slot]) slot = (slot + 1) % (vocabulary_size - 1);
      taken[slot] = true;
      slots[word] = static_cast<std::int64_t>(slot) + 1;
    }
  }
  for (const auto& text : texts) {
    for (const std::string& word : text) table.tokens.push_back(slots[word]);
    table.tokens.resize(table.tokens.size() + static_cast<std::size_t>(table.length) - text.size(), 0);
  }
  return table;
}

}  // namespace dvla::detail
