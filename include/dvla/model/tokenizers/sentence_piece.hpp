// A SentencePiece model (PaliGemma's and Llama's tokenizer.model), by SentencePiece's own library (link -lsentencepiece): its
// normalisation, a blank before the text (Llama's) and pieces of user-defined symbols (PaliGemma's line break) are the file's.
// A table of characters that it puts in others' stead (NFKC) is refused: PaliGemma and Llama have none, and the library would
// follow a damaged one out of its bounds. Control symbols in a text are text, as in SentencePiece's Python; Transformers would
// find </s> in it.
#pragma once

#include <sentencepiece_processor.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/text.hpp"
#include "dvla/model/tokenizers/tokenizer.hpp"

namespace dvla {

namespace detail {
/// `visit(number, bytes)` for each field of a message of Protocol Buffers that has a length; false where it is damaged.
template <class Visit>
bool for_each_proto_field(std::string_view message, Visit visit) {
  const auto number = [&](std::uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 70 && !message.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(message.front());
      message.remove_prefix(1);
      value |= std::uint64_t{byte & 0x7Fu} << std::min(shift, 63);
      if (byte < 0x80) return true;
    }
    return false;
  };
  while (!message.empty()) {
    std::uint64_t tag = 0, size = 0;
    if (!number(tag)) return false;
    switch (tag & 7) {
      case 0:
        if (!number(size)) return false;
        continue;
      case 1:
        size = 8;
        break;
      case 2:
        if (!number(size)) return false;
        break;
      case 5:
        size = 4;
        break;
      default:
        return false;
    }
    if (size > message.size()) return false;
    if ((tag & 7) == 2) visit(static_cast<std::uint32_t>(tag) >> 3, message.substr(0, size));
    message.remove_prefix(size);
  }
  return true;
}
}  // namespace detail

class SentencePiece final : public Tokenizer {
 public:
  /// Of a whole file; `label` names it in messages. Throws FormatError where it is no SentencePiece model, or has such a table.
  SentencePiece(std::string_view file, const std::string& label) {
    facts_.name = "SentencePiece '" + label + "'";
    const auto no_table = [&](std::uint32_t field, std::string_view table) {
      if (field == 2 && !table.empty())
        throw FormatError("'", label, "' is refused: its precompiled_charsmap has ", table.size(),
                          " bytes; only models that leave characters as they are (identity) are understood");
    };
    bool specs = true;
    const bool all = detail::for_each_proto_field(file, [&](std::uint32_t field, std::string_view spec) {
      if (field == 3 || field == 5)
        specs = specs && detail::for_each_proto_field(spec, no_table);  // normalizer and denormalizer_spec
    });
    if (!all || !specs)
      throw FormatError("'", label, "' is no SentencePiece model: it is damaged, or was cut off");
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
