// dvla-test: asan
// Tokens are those of SentencePiece's and Hugging Face's own libraries (test/golden/model/tokenizers/make_golden.py); files that are
// damaged, or ask for what is not understood, are refused in a sentence.
#include <doctest/doctest.h>

#include <array>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "dvla/model/tokenizers/open_tokenizer.hpp"
#include "test/io/temporary_folder.hpp"

using namespace dvla;
using dvla_test::contains, dvla_test::read_text, dvla_test::TemporaryFolder, dvla_test::write_text;
using nlohmann::json;

namespace {

const std::string folder = DVLA_TEST_DIR "/golden/model/tokenizers/";
const std::array<std::string, 3> names{"paligemma.model", "llama.model", "tokenizer.json"};

std::vector<std::int64_t> ids(const Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.encode(text);
}

}  // namespace

TEST_CASE("tokens of four hundred texts are those of the libraries in Python") {
  const json golden = json::parse(read_text(folder + "golden.json"));
  REQUIRE_GE(golden["texts"].size(), 400);
  for (std::size_t i = 0; i < names.size(); ++i) {
    CAPTURE(names[i]);
    const auto tokenizer = open_tokenizer(folder + names[i]);
    const json& facts = golden["facts"][names[i]];
    CHECK_EQ(tokenizer->facts().vocabulary, facts[0].get<std::int64_t>());
    CHECK_EQ(tokenizer->facts().begin.value_or(-1), facts[1].get<std::int64_t>());
    CHECK_EQ(tokenizer->facts().blank.value_or(-1), facts[2].get<std::int64_t>());
    CHECK(contains(tokenizer->facts().name, names[i]));
    for (const json& each : golden["texts"]) {
      const std::string text = each[0];
      CAPTURE(text);
      CHECK_EQ(json(tokenizer->encode(text)), each[i + 1]);
    }
  }
}

TEST_CASE("merges may be texts of two tokens or pairs, and digits may belong to what is beside them") {
  json file = json::parse(read_text(folder + "tokenizer.json"));
  const ByteLevelBpe paired(file.dump(), "paired");
  REQUIRE(file["model"]["merges"][0].is_array());
  for (json& each : file["model"]["merges"])
    each = each[0].get<std::string>() + " " + each[1].get<std::string>();
  const ByteLevelBpe texts(file.dump(), "texts");
  CHECK_EQ(ids(paired, "push the red-block 255"), ids(texts, "push the red-block 255"));
  file["pre_tokenizer"] = file["pre_tokenizer"]["pretokenizers"][1];
  file["model"]["vocab"]["12"] =
      file["model"]["vocab"].size() + file["added_tokens"].size() - 2;  // two are in the vocabulary
  file["model"]["merges"].push_back("1 2");
  const ByteLevelBpe together(file.dump(), "together");
  CHECK_EQ(ids(texts, "12").size(), 2);
  CHECK_EQ(ids(together, "12").size(), 1);
}

TEST_CASE("bytes are tokens behind three others, whatever they mean") {
  const ByteTokens bytes;
  CHECK_EQ(ids(bytes, "a \xFF"), std::vector<std::int64_t>{3 + 'a', 3 + ' ', 3 + 255});
  CHECK_EQ(bytes.facts().vocabulary, 259);
  CHECK_EQ(bytes.facts().begin.value(), 1);
  CHECK_EQ(bytes.facts().blank.value(), 3 + ' ');
}

TEST_CASE("a text that is no UTF-8 is refused, with the place") {
  for (const std::string& name : names) {
    CAPTURE(name);
    const auto tokenizer = open_tokenizer(folder + name);
    for (const std::string text : {"ab\xFF", "ab\xC3", "ab\xED\xA0\x80", "ab\xF4\x90\x80\x80", "ab\xC0\x80"})
      CHECK_THROWS_WITH_AS(tokenizer->encode(text), doctest::Contains("byte 2 of the text 'ab?"), Error);
  }
}

TEST_CASE("a byte without a token is refused, or stands for what is unknown") {
  json file = json::parse(read_text(folder + "tokenizer.json"));
  const auto unknown = file["model"]["vocab"]["<|endoftext|>"].get<std::int64_t>();
  file["model"]["vocab"]["rare"] = file["model"]["vocab"]["~"];
  file["model"]["vocab"].erase("~");
  CHECK_EQ(ids(ByteLevelBpe(file.dump(), "x"), "~"), std::vector{unknown});
  file["model"]["unk_token"] = nullptr;
  CHECK_THROWS_WITH_AS(ByteLevelBpe(file.dump(), "x").encode("a~"),
                       "BPE 'x': no token is there for byte 126 of '~'", Error);
}

TEST_CASE("a file or a folder is opened; of both kinds in a folder SentencePiece's is taken") {
  const TemporaryFolder there;
  const auto why = [](const std::filesystem::path& path) {
    try {
      open_tokenizer(path);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  CHECK(contains(why(there / ""), "has neither a tokenizer.model nor a tokenizer.json"));
  CHECK(contains(why(there / "absent.model"), "is no file that can be read, or is empty"));
  CHECK(contains(why(there / "vocab.txt"),
                 "it must be SentencePiece's *.model, a tokenizer.json, or a folder"));
  std::filesystem::copy(folder + "tokenizer.json", there / "tokenizer.json");
  CHECK(open_tokenizer(there / "")->facts().name.starts_with("BPE '"));
  std::filesystem::copy(folder + "llama.model", there / "tokenizer.model");
  CHECK(open_tokenizer(there / "")->facts().name.starts_with("SentencePiece '"));
  write_text(there / "large.json", "{");
  std::filesystem::resize_file(there / "large.json", max_tokenizer_bytes + 1);
  CHECK(contains(why(there / "large.json"), "has 67108865 bytes; it may have 67108864"));
}

TEST_CASE("what a tokenizer.json asks for and is not understood is refused by its field") {
  const json sound = json::parse(read_text(folder + "tokenizer.json"));
  const auto refuses = [&](const std::string& why, const std::function<void(json&)>& change) {
    json file = sound;
    change(file);
    CAPTURE(why);
    CHECK_THROWS_WITH_AS(ByteLevelBpe(file.dump(), "x"), doctest::Contains(why.c_str()), FormatError);
  };
  refuses("'x' is refused: its field 'version' is \"2.0\"; only \"1.0\" is understood",
          [](json& f) { f["version"] = "2.0"; });
  refuses("it has \"more\", which is not understood", [](json& f) { f["more"] = 1; });
  refuses("'normalizer' is an object; only null is understood", [](json& f) {
    f["normalizer"] = {{"type", "NFC"}};
  });
  refuses("'pre_tokenizer' is null; it must be an object", [](json& f) { f["pre_tokenizer"] = nullptr; });
  refuses("'pre_tokenizer.type' is \"Whitespace\"; only \"ByteLevel\" is understood", [](json& f) {
    f["pre_tokenizer"] = {{"type", "Whitespace"}};
  });
  refuses("'pre_tokenizer.pretokenizers' must be a list of ByteLevel, or of Digits and ByteLevel",
          [](json& f) { f["pre_tokenizer"]["pretokenizers"] = json::array(); });
  refuses("'pre_tokenizer.pretokenizers[0].individual_digits' is false; only true is understood",
          [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = false; });
  refuses("'pre_tokenizer.pretokenizers[0].type' is \"Split\"", [](json& f) {
    f["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Split"}, {"individual_digits", true}};
  });
  refuses("'pre_tokenizer.pretokenizers[1].add_prefix_space' is true; only false is understood",
          [](json& f) { f["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; });
  refuses("'pre_tokenizer.pretokenizers[1].use_regex' is false",
          [](json& f) { f["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = false; });
  refuses("'post_processor.type' is \"TemplateProcessing\"", [](json& f) {
    f["post_processor"] = {{"type", "TemplateProcessing"}};
  });
  refuses("'model.type' is \"Unigram\"; only \"BPE\" is understood",
          [](json& f) { f["model"]["type"] = "Unigram"; });
  refuses("'model.dropout' is 0.1; only null is understood", [](json& f) { f["model"]["dropout"] = 0.1; });
  refuses("'model.end_of_word_suffix' is \"</w>\"; only null or \"\" is understood",
          [](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; });
  refuses("'model.byte_fallback' is true", [](json& f) { f["model"]["byte_fallback"] = true; });
  refuses("'model.ignore_merges' is true", [](json& f) { f["model"]["ignore_merges"] = true; });
  refuses("'model.unk_token' is \"[UNK]\"; it must be a token",
          [](json& f) { f["model"]["unk_token"] = "[UNK]"; });
  refuses("'added_tokens[0].lstrip' is true; only false is understood",
          [](json& f) { f["added_tokens"][0]["lstrip"] = true; });
  refuses("'added_tokens[1].single_word' is true",
          [](json& f) { f["added_tokens"][1]["single_word"] = true; });
}

TEST_CASE("a damaged tokenizer.json is refused in a sentence") {
  const std::string text = read_text(folder + "tokenizer.json");
  const json sound = json::parse(text);
  const auto refuses = [&](const std::string& why, const std::function<void(json&)>& change) {
    json file = sound;
    change(file);
    CAPTURE(why);
    CHECK_THROWS_WITH_AS(ByteLevelBpe(file.dump(), "x"), doctest::Contains(why.c_str()), FormatError);
  };
  const auto damaged = [](const std::string& bytes, const std::string& why) {
    CAPTURE(why);
    CHECK_THROWS_WITH_AS(ByteLevelBpe(bytes, "x"), doctest::Contains(why.c_str()), FormatError);
  };
  damaged(text.substr(0, text.size() / 2), "'x' is refused: it is not valid JSON at byte");
  damaged("[]", "it is an array; it must be an object");
  damaged(text + std::string(1, '\0'), "it contains a zero byte");
  damaged(R"({"model":{"vocab":{"a":0,"a":1}}})", "the key 'a' stands twice");
  damaged(std::string(100, '['), "its JSON nests too deep");
  damaged("{\"version\":\"\xFF\"}", "it is not valid JSON at byte");
  refuses("'model.vocab' must be an object of ids", [](json& f) { f["model"].erase("vocab"); });
  refuses("'model.vocab' is \"7\"; it must be a whole number",
          [](json& f) { f["model"]["vocab"]["a"] = "7"; });
  refuses("'model.vocab' gives 'a' the id 9999, and ids of",
          [](json& f) { f["model"]["vocab"]["a"] = 9999; });
  refuses("'model.vocab' gives 'a' the id -1, and ids of", [](json& f) { f["model"]["vocab"]["a"] = -1; });
  refuses("which another token has", [](json& f) { f["model"]["vocab"]["a"] = f["model"]["vocab"]["b"]; });
  refuses("'added_tokens[2]' gives '<image>' the id 5, which another token has",
          [](json& f) { f["added_tokens"][2]["id"] = 5; });
  refuses("'added_tokens[0]' gives '<|endoftext|>' the id 7, and it has another already",
          [](json& f) { f["added_tokens"][0]["id"] = 7; });
  refuses("'added_tokens[3]' gives '<image>' the id",
          [](json& f) { f["added_tokens"][3]["content"] = "<image>"; });
  refuses("'added_tokens[2].content' is empty", [](json& f) { f["added_tokens"][2]["content"] = ""; });
  refuses("'added_tokens[0].normalized' is missing",
          [](json& f) { f["added_tokens"][0].erase("normalized"); });
  refuses("'model.merges' must be a list", [](json& f) { f["model"]["merges"] = 1; });
  refuses("'model.merges[0]' is \"a b c\"; it must be two tokens with a blank between them",
          [](json& f) { f["model"]["merges"][0] = "a b c"; });
  refuses("'model.merges[0]' is an array; it must be an array of 2",
          [](json& f) { f["model"]["merges"][0] = {"a"}; });
  refuses("'model.merges[1]' has 'zzz', which is no token", [](json& f) {
    f["model"]["merges"][1] = {"a", "zzz"};
  });
  refuses("'model.merges[1]' has '~~', which is no token", [](json& f) {
    f["model"]["merges"][1] = {"~", "~"};
  });
  refuses("'model.merges[1]' stands twice",
          [](json& f) { f["model"]["merges"][1] = f["model"]["merges"][0]; });
}

TEST_CASE("what is no SentencePiece model is refused in a sentence") {
  const std::string sound = read_text(folder + "llama.model");
  for (const std::string& bytes :
       {std::string("no model"), sound.substr(0, sound.size() / 2), std::string(), sound + "\x0A\x7F"})
    CHECK_THROWS_WITH_AS(SentencePiece(bytes, "x"), doctest::Contains("'x' is no SentencePiece model: "),
                         FormatError);
}

TEST_CASE("a SentencePiece model that replaces characters is refused") {
  const std::string sound = read_text(folder + "llama.model");
  for (const std::string field : {"\x1A", "\x2A"})  // of a normalizer_spec, and a denormalizer_spec
    CHECK_THROWS_WITH_AS(
        SentencePiece(sound + field + "\x06\x12\x04" + "abcd", "x"),
        doctest::Contains("'x' is refused: its precompiled_charsmap has 4 bytes; only models"), FormatError);
}

TEST_CASE("mutated files are refused, or read and used") {
  std::mt19937_64 engine(20261130);  // the raw engine: distributions differ between standard libraries
  const auto below = [&](std::size_t bound) { return static_cast<std::size_t>(engine() % bound); };
  // The library must not write to the standard error either.
  std::ostringstream said;
  std::streambuf* const before = std::cerr.rdbuf(said.rdbuf());
  const std::array<std::string, 12> words{"0", "9", "-1", "1e99", "[",    "]",
                                          "{", "}", "\"", ",",    "null", "true"};
  for (const std::string& name : names) {
    CAPTURE(name);
    const std::string sound = read_text(folder + name);
    constexpr int cases = 2000;
    int accepted = 0;
    for (int i = 0; i < cases; ++i) {
      std::string file = sound;
      for (std::size_t rounds = 1 + below(3); rounds > 0 && !file.empty(); --rounds) {
        const std::size_t at =
            below(2) == 0 ? below(file.size()) : below(std::min<std::size_t>(file.size(), 2000));
        switch (below(6)) {
          case 0:
            file[at] = static_cast<char>(file[at] ^ (1 << below(8)));
            break;
          case 1:
            file[at] = static_cast<char>(below(256));
            break;
          case 2:
            if (below(4) == 0) file.resize(at);
            break;
          case 3:
            file.erase(at, below(16));
            break;
          case 4:
            file.insert(at, sound, below(sound.size()), below(64));
            break;
          default: {
            const std::string& word = words[below(words.size())];
            file.replace(at, std::min(word.size(), file.size() - at), word);
          }
        }
      }
      try {
        std::unique_ptr<const Tokenizer> tokenizer;
        if (name.ends_with(".model"))
          tokenizer = std::make_unique<SentencePiece>(file, "x");
        else
          tokenizer = std::make_unique<ByteLevelBpe>(file, "x");
        ++accepted;
        for (const std::int64_t id : tokenizer->encode("push_the red cube's 255 é日😀\n<image> "))
          REQUIRE((id >= 0 && id < tokenizer->facts().vocabulary));
      } catch (const Error& error) {
        REQUIRE_LT(std::string_view(error.what()).size(), 1000);
      }
    }
    MESSAGE(accepted << " of " << cases << " were accepted");
    CHECK_GT(accepted, cases / 100);
    CHECK_LT(accepted, cases);
  }
  std::cerr.rdbuf(before);
  CHECK_EQ(said.str(), "");
}
