// Byte-level BPE from a tokenizer.json of Hugging Face's tokenizers (SmolVLM2's, of SmolVLA): added tokens are found in the text
// first, digits may stand apart, then comes GPT-2's expression, and a piece's bytes are merged pair by pair. No normalisation, no
// tokens before or behind the text; what else a file asks for is refused by its field's name. Dear to compile (nlohmann).
#pragma once

#include <algorithm>
#include <array>
#include <boost/hana.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/json.hpp"
#include "dvla/core/text.hpp"
#include "dvla/io/safetensors_header.hpp"
#include "dvla/model/tokenizers/tokenizer.hpp"
#include "dvla/model/tokenizers/unicode.hpp"

namespace dvla::detail {

/// A token of its own, wherever it stands in a text.
struct AddedToken {
  std::int64_t id = 0;
  std::string content;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

/// A field of a tokenizer.json and the values that are understood; none: it is read elsewhere, or changes no token.
struct UnderstoodField {
  const char* name;
  std::vector<nlohmann::json> values{};
};
/// Throws FormatError where an object has another field, or another value; a field that is absent counts as null.
inline void need_fields(const nlohmann::json& object, const JsonPlace& place,
                        std::initializer_list<UnderstoodField> fields) {
  if (!object.is_object()) place.refuse("is " + shown(object) + "; it must be an object");
  for (const auto& item : object.items())
    if (std::ranges::none_of(fields, [&](const auto& each) { return item.key() == each.name; }))
      place.refuse("has " + shown(nlohmann::json(item.key())) + ", which is not understood");
  for (const UnderstoodField& each : fields) {
    const nlohmann::json value = object.contains(each.name) ? object[each.name] : nlohmann::json();
    if (each.values.empty() || std::ranges::count(each.values, value) > 0) continue;
    std::string must;
    for (const nlohmann::json& may : each.values) must += (must.empty() ? "" : " or ") + shown(may);
    JsonPlace{&place, each.name}.refuse("is " + shown(value) + "; only " + must + " is understood");
  }
}

}  // namespace dvla::detail

BOOST_HANA_ADAPT_STRUCT(dvla::detail::AddedToken, id, content, single_word, lstrip, rstrip, normalized,
                        special);

namespace dvla {

class ByteLevelBpe final : public Tokenizer {
 public:
  /// Of a whole file; `label` names it in messages. Throws FormatError, one sentence, and nothing else but std::bad_alloc.
  ByteLevelBpe(std::string_view file, const std::string& label) {
    facts_.name = "BPE '" + label + "'";
    try {
      read(file);
    } catch (const FormatError& error) {
      throw FormatError("'", label, "' is refused: ", error.what());
    }
  }

  /// Throws Error, too, where a byte has no token and the file names none for what is unknown.
  std::vector<std::int64_t> encode(std::string_view text) const override {
    need_utf8(text);
    std::vector<std::int64_t> tokens;
    between(text, 0, tokens);
    return tokens;
  }

 private:
  using Json = nlohmann::json;
  using Place = detail::JsonPlace;
  using Ids = std::unordered_map<std::string, std::uint32_t>;
  using Tokens = std::vector<std::pair<std::string, std::uint32_t>>;
  struct Merge {
    std::size_t rank;
    std::uint32_t id;
  };

  // ---- The file

  void read(std::string_view file) {
    // nlohmann takes a zero byte for the end of the text and would not look at what follows.
    if (file.find('\0') != std::string_view::npos) throw FormatError("it contains a zero byte");
    const Json root = io::detail::parse_strictly(
        file, [](const std::string& why) { throw FormatError(why); }, 8);
    const Place top;
    detail::need_fields(root, top,
                        {{"version", {"1.0"}},
                         {"truncation"},  // of calls that ask for it
                         {"padding"},
                         {"added_tokens"},
                         {"normalizer", {nullptr}},
                         {"pre_tokenizer"},
                         {"post_processor"},
                         {"decoder"},
                         {"model"}});
    const auto at = [&](const char* name) { return root.contains(name) ? root[name] : Json(); };
    read_splits(at("pre_tokenizer"), {&top, "pre_tokenizer"});
    if (const Json last = at("post_processor"); !last.is_null())  // one that moves offsets alone
      detail::need_fields(last, {&top, "post_processor"},
                          {{"type", {"ByteLevel"}}, {"add_prefix_space"}, {"trim_offsets"}, {"use_regex"}});
    read_model(at("model"), {&top, "model"}, at("added_tokens"), {&top, "added_tokens"});
  }

  void read_splits(const Json& json, const Place& place) {
    const auto byte_level = [](const Json& each, const Place& here) {
      detail::need_fields(each, here,
                          {{"type", {"ByteLevel"}},
                           {"add_prefix_space", {false}},
                           {"trim_offsets"},
                           {"use_regex", {nullptr, true}}});
    };
    if (!json.is_object() || json.value("type", Json()) != "Sequence") return byte_level(json, place);
    detail::need_fields(json, place, {{"type"}, {"pretokenizers"}});
    const Place list{&place, "pretokenizers"};
    const Json& parts = json.contains("pretokenizers") ? json["pretokenizers"] : json;
    if (!parts.is_array() || parts.empty() || parts.size() > 2)
      list.refuse("must be a list of ByteLevel, or of Digits and ByteLevel");
    if (parts.size() == 2) {
      detail::need_fields(parts[0], {&list, nullptr, 0},
                          {{"type", {"Digits"}}, {"individual_digits", {true}}});
      digits_apart_ = true;
    }
    byte_level(parts.back(), {&list, nullptr, parts.size() - 1});
  }

  void read_model(const Json& model, const Place& place, const Json& added, const Place& added_place) {
    detail::need_fields(model, place,
                        {{"type", {"BPE"}},
                         {"dropout", {nullptr}},
                         {"unk_token"},
                         {"continuing_subword_prefix", {nullptr, ""}},
                         {"end_of_word_suffix", {nullptr, ""}},
                         {"fuse_unk", {nullptr, false}},
                         {"byte_fallback", {nullptr, false}},
                         {"ignore_merges", {nullptr, false}},
                         {"vocab"},
                         {"merges"}});
    const Place vocab{&place, "vocab"}, merges{&place, "merges"}, unknown{&place, "unk_token"};
    if (!model.contains("vocab") || !model["vocab"].is_object()) vocab.refuse("must be an object of ids");
    if (!model.contains("merges") || !model["merges"].is_array()) merges.refuse("must be a list");

    std::vector<detail::AddedToken> apart;
    if (!added.is_null()) detail::read_json_value(added, added_place, apart);
    std::size_t count = model["vocab"].size();
    for (const auto& each : apart) count += model["vocab"].contains(each.content) ? 0 : 1;
    facts_.vocabulary = static_cast<std::int64_t>(count);

    Ids ids;
    std::vector<bool> taken(count);
    const auto take = [&](const std::string& token, std::int64_t id, const Place& here) {
      const std::string which = "gives " + io::detail::printable(token) + " the id " + std::to_string(id);
      if (id < 0 || static_cast<std::size_t>(id) >= count)
        here.refuse(which + ", and ids of " + std::to_string(count) + " tokens must be below that");
      if (taken[static_cast<std::size_t>(id)]) here.refuse(which + ", which another token has");
      taken[static_cast<std::size_t>(id)] = true;
      ids.emplace(token, static_cast<std::uint32_t>(id));
    };
    for (const auto& item : model["vocab"].items()) {
      std::int64_t id = 0;
      detail::read_json_value(item.value(), vocab, id);
      take(item.key(), id, vocab);
    }
    for (std::size_t i = 0; i < apart.size(); ++i) {
      const detail::AddedToken& each = apart[i];
      const Place here{&added_place, nullptr, i};
      for (const auto& [is, name] : {std::pair(each.single_word, "single_word"),
                                     std::pair(each.lstrip, "lstrip"), std::pair(each.rstrip, "rstrip")})
        if (is) Place{&here, name}.refuse("is true; only false is understood");
      if (each.content.empty()) Place{&here, "content"}.refuse("is empty");
      if (!model["vocab"].contains(each.content)) take(each.content, each.id, here);
      if (ids.at(each.content) != each.id)
        here.refuse("gives " + io::detail::printable(each.content) + " the id " + std::to_string(each.id) +
                    ", and it has another already");
      // Those that are to be found in a normalised text are looked for behind the others, though nothing is normalised.
      added_[each.normalized ? 1 : 0][static_cast<unsigned char>(each.content[0])].emplace_back(
          each.content, ids.at(each.content));
    }
    for (auto& kind : added_)
      for (Tokens& list : kind)
        std::ranges::sort(list, std::ranges::greater(), [](const auto& token) { return token.first.size(); });
    read_bytes(model.value("unk_token", Json()), unknown, ids);
    read_merges(model["merges"], merges, ids);
  }

  /// GPT-2's characters for bytes: those that can be seen stand for themselves, the others for U+0100 and on.
  void read_bytes(const Json& unknown, const Place& place, const Ids& ids) {
    std::uint32_t otherwise = none;
    if (!unknown.is_null()) {
      const auto found = unknown.is_string() ? ids.find(unknown.get<std::string>()) : ids.end();
      if (found == ids.end()) place.refuse("is " + detail::shown(unknown) + "; it must be a token");
      otherwise = found->second;
    }
    std::int32_t next = 0x100;
    for (std::int32_t byte = 0; byte < 256; ++byte) {
      const bool seen = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      utf8proc_uint8_t text[4];
      const utf8proc_ssize_t size = utf8proc_encode_char(seen ? byte : next++, text);
      const auto found =
          ids.find(std::string(reinterpret_cast<const char*>(text), static_cast<std::size_t>(size)));
      bytes_[static_cast<std::size_t>(byte)] = found == ids.end() ? otherwise : found->second;
    }
  }

  /// "a b" or ["a", "b"]: the first stands before all others.
  void read_merges(const Json& merges, const Place& place, const Ids& ids) {
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
      const Place here{&place, nullptr, rank};
      std::array<std::string, 2> sides;
      if (merges[rank].is_string()) {
        const std::string text = merges[rank].get<std::string>();
        const std::size_t blank = text.find(' ');
        if (blank == std::string::npos || text.find(' ', blank + 1) != std::string::npos)
          here.refuse("is " + detail::shown(merges[rank]) +
                      "; it must be two tokens with a blank between them");
        sides = {text.substr(0, blank), text.substr(blank + 1)};
      } else {
        detail::read_json_value(merges[rank], here, sides);
      }
      const auto id = [&](const std::string& token) {
        const auto found = ids.find(token);
        if (found == ids.end()) here.refuse("has " + io::detail::printable(token) + ", which is no token");
        return found->second;
      };
      const std::uint64_t pair = key(id(sides[0]), id(sides[1]));
      if (!merges_.emplace(pair, Merge{rank, id(sides[0] + sides[1])}).second) here.refuse("stands twice");
    }
  }

  // ---- Texts

  /// The text between added tokens, of the first kind and then of the second.
  void between(std::string_view text, std::size_t kind, std::vector<std::int64_t>& tokens) const {
    if (kind == added_.size()) return split(text, tokens);
    std::size_t from = 0;
    for (std::size_t at = 0; at < text.size();) {
      const auto& list = added_[kind][static_cast<unsigned char>(text[at])];
      const auto found = std::ranges::find_if(
          list, [&](const auto& token) { return text.substr(at).starts_with(token.first); });
      if (found == list.end()) {
        ++at;
        continue;
      }
      between(text.substr(from, at - from), kind + 1, tokens);
      tokens.push_back(found->second);
      from = at += found->first.size();
    }
    between(text.substr(from), kind + 1, tokens);
  }

  struct Character {
    std::int32_t code;
    detail::CharacterKind kind;
    std::size_t begin;  ///< in the text, bytes
  };

  /// GPT-2's expression, on the whole text or on what stands between digits:
  /// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  void split(std::string_view text, std::vector<std::int64_t>& tokens) const {
    std::vector<Character> all;
    detail::for_each_code_point(text, [&](std::int32_t code, std::string_view bytes) {
      all.push_back({code, detail::kind_of(code), static_cast<std::size_t>(bytes.data() - text.data())});
    });
    const auto is_digit = [&](std::size_t i) { return all[i].kind == detail::CharacterKind::number; };
    for (std::size_t from = 0; from < all.size();) {
      std::size_t end = digits_apart_ ? from + 1 : all.size();
      if (digits_apart_ && !is_digit(from))
        while (end < all.size() && !is_digit(end)) ++end;
      while (from < end) {
        const std::size_t next = from + piece_length(std::span(all).subspan(from, end - from));
        const std::size_t begin = all[from].begin, stop = next < all.size() ? all[next].begin : text.size();
        merge(text.substr(begin, stop - begin), tokens);
        from = next;
      }
    }
  }

  /// Characters of the expression's first match, at least one; `rest` is not empty.
  static std::size_t piece_length(std::span<const Character> rest) {
    using detail::CharacterKind;
    if (rest[0].code == '\'')
      for (const std::string_view ending : {"s", "t", "re", "ve", "m", "ll", "d"})
        if (rest.size() > ending.size() &&
            std::ranges::equal(ending, rest.subspan(1, ending.size()), {}, {}, &Character::code))
          return 1 + ending.size();
    const std::size_t begin =
        rest[0].code == ' ' && rest.size() > 1 && rest[1].kind != CharacterKind::blank ? 1 : 0;
    const CharacterKind kind = rest[begin].kind;
    const auto stop =
        std::ranges::find_if(rest.subspan(begin), [&](const Character& each) { return each.kind != kind; });
    const auto run = static_cast<std::size_t>(stop - rest.begin());
    // A run of blanks leaves its last to what comes behind it.
    return kind == CharacterKind::blank && run < rest.size() && run > 1 ? run - 1 : run;
  }

  static constexpr std::uint32_t none = 0xFFFFFFFF;
  static std::uint64_t key(std::uint32_t left, std::uint32_t right) {
    return std::uint64_t{left} << 32 | right;
  }

  /// The pair of the lowest rank becomes one, the leftmost of equal ones first, until no pair has a rank.
  void merge(std::string_view piece, std::vector<std::int64_t>& tokens) const {
    struct Part {
      std::uint32_t id;
      std::size_t before, behind;  ///< its neighbours; piece.size(): none
    };
    const std::size_t n = piece.size();
    std::vector<Part> parts(n);
    for (std::size_t i = 0; i < n; ++i) {
      const auto byte = static_cast<unsigned char>(piece[i]);
      parts[i] = {bytes_[byte], i == 0 ? n : i - 1, i + 1};
      if (parts[i].id == none)
        throw Error(facts_.name, ": no token is there for byte ", byte, " of '", detail::one_line(piece),
                    "'");
    }
    using Found = std::tuple<std::size_t, std::size_t, std::uint64_t,
                             std::uint32_t>;  // rank, left part, its pair, what it becomes
    std::priority_queue<Found, std::vector<Found>, std::greater<>> found;
    const auto look = [&](std::size_t left) {
      if (left == n || parts[left].behind == n) return;
      const std::uint64_t pair = key(parts[left].id, parts[parts[left].behind].id);
      if (const auto known = merges_.find(pair); known != merges_.end())
        found.emplace(known->second.rank, left, pair, known->second.id);
    };
    for (std::size_t i = 0; i < n; ++i) look(i);
    while (!found.empty()) {
      const auto [rank, left, pair, id] = found.top();
      found.pop();
      const std::size_t right = parts[left].behind;
      if (parts[left].id == none || right == n || key(parts[left].id, parts[right].id) != pair) continue;
      parts[left].id = id;
      parts[left].behind = parts[right].behind;
      parts[right].id = none;
      if (parts[left].behind < n) parts[parts[left].behind].before = left;
      look(parts[left].before);
      look(left);
    }
    for (std::size_t i = 0; i < n; i = parts[i].behind) tokens.push_back(parts[i].id);
  }

  std::array<std::array<Tokens, 256>, 2> added_;  ///< by their first byte, the longest first
  bool digits_apart_ = false;
  std::array<std::uint32_t, 256> bytes_{};
  std::unordered_map<std::uint64_t, Merge> merges_;
};

}  // namespace dvla
