// The tokeniser that a file has: SentencePiece's *.model or Hugging Face's tokenizer.json.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <system_error>

#include "dvla/core/error.hpp"
#include "dvla/model/tokenizers/byte_level_bpe.hpp"
#include "dvla/model/tokenizers/sentence_piece.hpp"
#include "dvla/model/tokenizers/tokenizer.hpp"

namespace dvla {

inline constexpr std::uintmax_t max_tokenizer_bytes = 64 << 20;

/// `path` is a file or a folder; of a folder that has both, SentencePiece's is taken, which facts().name says. Throws ConfigError
/// where there is none, FormatError where it is damaged or asks for what is not understood.
inline std::unique_ptr<const Tokenizer> open_tokenizer(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  std::error_code failed;
  fs::path file = path;
  if (fs::is_directory(path, failed)) {
    for (const char* name : {"tokenizer.json", "tokenizer.model"})
      if (fs::exists(path / name, failed)) file = path / name;
    if (file == path)
      throw ConfigError(
          "the folder '", path.string(),
          "' has neither a tokenizer.model nor a tokenizer.json; model.tokenizer may name one elsewhere, "
          "or say bytes");
  }
  const bool sentence_piece = file.extension() == ".model";
  if (!sentence_piece && file.extension() != ".json")
    throw ConfigError("'", file.string(),
                      "' is no tokeniser: it must be SentencePiece's *.model, a tokenizer.json, or a folder "
                      "with one");
  const std::uintmax_t size = fs::is_regular_file(file, failed) ? fs::file_size(file, failed) : 0;
  std::ifstream in(file, std::ios::binary);
  if (size == 0 || failed || !in)
    throw ConfigError("the tokeniser '", file.string(), "' is no file that can be read, or is empty");
  if (size > max_tokenizer_bytes)
    throw FormatError("the tokeniser '", file.string(), "' has ", size, " bytes; it may have ",
                      max_tokenizer_bytes);
  std::string bytes(static_cast<std::size_t>(size), '\0');
  in.read(bytes.data(), static_cast<std::streamsize>(size));
  if (in.gcount() != static_cast<std::streamsize>(size))
    throw ConfigError("the tokeniser '", file.string(), "' cannot be read to its end");
  if (sentence_piece) return std::make_unique<SentencePiece>(bytes, file.string());
  return std::make_unique<ByteLevelBpe>(bytes, file.string());
}

}  // namespace dvla
