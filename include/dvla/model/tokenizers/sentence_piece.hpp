// A SentencePiece model (PaliGemma's and Llama's tokenizer.model), by SentencePiece's own library (link -lsentencepiece): its
// normalisation, a blank before the text (Llama's) and pieces of user-defined symbols (PaliGemma's line break) are the file's.
// Control symbols in a text are text, as in SentencePiece's Python; Transformers would find </s> in it.
#pragma once

#include <sentencepiece_processor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"
#include "dvla/model/tokenizers/tokenizer.hpp"

namespace dvla {

class SentencePiece final : public Tokenizer {
 public:
  /// Of a whole file; `label` names it in messages. Throws FormatError where it is no SentencePiece model.
  SentencePiece(std::string_view file, const std::string& label) {
    facts_.name = "SentencePiece '" + label + "'";
    if (const auto status = processor_.LoadFromSerializedProto(file); !status.ok())
      throw FormatError("'", label, "' is no SentencePiece model: ", detail::one_line(status.message(), 200));
    facts_.vocabulary = processor_.GetPieceSize();
    if (const int begin = processor_.bos_id(); begin >= 0) facts_.begin = begin;
    const std::string_view mark = "\u2581";  // what SentencePiece writes for a blank
    if (const int blank = processor_.PieceToId(mark); processor_.IdToPiece(blank) == mark)
      facts_.blank = blank;
  }

  std::vector<std::int64_t> encode(std::string_view text) const override {
    need_utf8(text);
    std::vector<int> ids;
    if (const auto status = processor_.Encode(text, &ids); !status.ok())
      throw Error(facts_.name, ": ", detail::one_line(status.message(), 200));
    return {ids.begin(), ids.end()};
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace dvla
