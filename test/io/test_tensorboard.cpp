#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "dvla/io/tensorboard.hpp"
#include "temporary_folder.hpp"

using namespace dvla::io;
using namespace dvla_test;

namespace {

template <class T>
T take(std::string_view& bytes) {
  T value{};
  REQUIRE(bytes.size() >= sizeof value);
  std::memcpy(&value, bytes.data(), sizeof value);
  bytes.remove_prefix(sizeof value);
  return value;
}
std::uint64_t take_varint(std::string_view& bytes) {
  std::uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = static_cast<std::uint8_t>(take<char>(bytes));
    value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
}
std::string_view take_bytes(std::string_view& bytes) {
  const std::size_t size = take_varint(bytes);
  REQUIRE(bytes.size() >= size);
  const std::string_view out = bytes.substr(0, size);
  bytes.remove_prefix(size);
  return out;
}

struct Event {
  double wall_time = 0;
  std::int64_t step = 0;
  std::string version, tag;
  std::optional<float> value;
  bool start = false;  ///< of a session
};

/// A reader written apart from the writer: checks framing and checksums, decodes by field number.
std::vector<Event> read_events(const std::string& file) {
  std::vector<Event> events;
  for (std::string_view rest = file; !rest.empty();) {
    const std::string_view length_bytes = rest.substr(0, 8);
    const auto length = take<std::uint64_t>(rest);
    REQUIRE(take<std::uint32_t>(rest) == masked_crc32c(length_bytes));
    std::string_view record = rest.substr(0, length);
    rest.remove_prefix(length);
    REQUIRE(take<std::uint32_t>(rest) == masked_crc32c(record));
    Event event;
    while (!record.empty()) {
      const std::uint64_t key = take_varint(record);
      if (key == (1 << 3 | 1))
        event.wall_time = take<double>(record);
      else if (key == (2 << 3 | 0))
        event.step = static_cast<std::int64_t>(take_varint(record));
      else if (key == (3 << 3 | 2))
        event.version = take_bytes(record);
      else if (key == (5 << 3 | 2)) {
        std::string_view summary = take_bytes(record);
        REQUIRE(take_varint(summary) == (1 << 3 | 2));
        std::string_view value = take_bytes(summary);
        REQUIRE(summary.empty());
        REQUIRE(take_varint(value) == (1 << 3 | 2));
        event.tag = take_bytes(value);
        REQUIRE(take_varint(value) == (2 << 3 | 5));
        event.value = take<float>(value);
        REQUIRE(value.empty());
      } else if (key == (7 << 3 | 2)) {
        event.start = take_bytes(record) == std::string_view("\x08\x01", 2);
      } else {
        FAIL("unknown field");
      }
    }
    events.push_back(event);
  }
  return events;
}

}  // namespace

TEST_CASE("CRC-32C agrees with the published vectors") {
  CHECK(crc32c("123456789") == 0xE3069283U);  // the catalogue's check value
  CHECK(crc32c("") == 0U);
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AAU);  // RFC 3720, B.4
  CHECK(crc32c(std::string(32, '\xff')) == 0x62A8AB43U);
  std::string rising(32, '\0');
  for (int i = 0; i < 32; ++i) rising[static_cast<std::size_t>(i)] = static_cast<char>(i);
  CHECK(crc32c(rising) == 0x46DD794EU);
  CHECK(masked_crc32c("") == 0xa282ead8U);
}

TEST_CASE("records read back with their checksums, the file version first") {
  TemporaryFolder folder;
  {
    TensorBoardWriter writer(folder / "events.out.tfevents.1");
    writer.scalar("train/success", 0, 0.25F, 1000.5);
    writer.scalar("train/success", 300, 0.5F);
    writer.scalar(std::string(200, 't'), std::int64_t{1} << 40, -1e30F);
    writer.scalar("nan", -1, std::nanf(""));
  }
  const std::vector<Event> events = read_events(read_text(folder / "events.out.tfevents.1"));
  REQUIRE(events.size() == 5);
  CHECK(events[0].version == "brain.Event:2");
  CHECK(events[0].wall_time > 1.6e9);
  CHECK(events[1].tag == "train/success");
  CHECK(events[1].wall_time == 1000.5);
  CHECK(events[1].value == 0.25F);
  CHECK(events[2].step == 300);
  CHECK(events[3].tag == std::string(200, 't'));
  CHECK(events[3].step == std::int64_t{1} << 40);
  CHECK(events[4].step == -1);
  CHECK(std::isnan(*events[4].value));
}

TEST_CASE("the buffer is bounded: records go out before close") {
  TemporaryFolder folder;
  TensorBoardWriter writer(folder / "e");
  for (int i = 0; i < 3000; ++i) writer.scalar("x", i, 0.0F);
  CHECK(std::filesystem::file_size(folder / "e") >= TensorBoardWriter::flush_bytes);
  writer.close();
  CHECK(read_events(read_text(folder / "e")).size() == 3001);
  CHECK_THROWS_AS(writer.scalar("x", 0, 0.0F), dvla::Error);
}

TEST_CASE("bad tags, missing folders and existing files are refused") {
  TemporaryFolder folder;
  TensorBoardWriter writer(folder / "e");
  CHECK_THROWS_AS(writer.scalar("", 0, 0.0F), dvla::Error);
  CHECK_THROWS_AS(writer.scalar(std::string(1025, 'x'), 0, 0.0F), dvla::Error);
  CHECK(contains(message_of<dvla::Error>([&] { TensorBoardWriter again(folder / "e"); }), "File exists"));
  CHECK(contains(message_of<dvla::Error>([&] { TensorBoardWriter lost(folder / "no/e"); }), "No such file"));
}

TEST_CASE("a file says with which step its run goes on, before anything else") {
  TemporaryFolder folder;
  {
    TensorBoardWriter writer(folder / "e", 300);
    writer.scalar("x", 300, 0.0F);
  }
  const std::vector<Event> events = read_events(read_text(folder / "e"));
  REQUIRE(events.size() == 3);
  CHECK(events[0].version == "brain.Event:2");
  CHECK_FALSE(events[0].start);
  CHECK(events[1].start);
  CHECK(events[1].step == 300);
  CHECK(events[2].tag == "x");
}

TEST_CASE("a full disk costs the records that were to go out, and no later ones") {
  TemporaryFolder folder;
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto limit = [&](rlim_t bytes) {
    const rlimit now{bytes, before.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &now) == 0);
  };
  limit(10);  // not even the first records: a file without them is none
  CHECK(
      contains(message_of<dvla::Error>([&] { TensorBoardWriter torn(folder / "e", 1); }), "File too large"));
  CHECK(!std::filesystem::exists(folder / "e"));
  limit(before.rlim_cur);
  TensorBoardWriter writer(folder / "e", 1);
  writer.scalar("kept", 1, 0.0F);
  writer.flush();
  limit(std::filesystem::file_size(folder / "e") + 100);
  writer.scalar(std::string(500, 'x'), 2, 0.0F);
  CHECK_THROWS_AS(writer.flush(), dvla::Error);
  limit(before.rlim_cur);
  writer.scalar("later", 3, 0.0F);
  writer.close();
  const std::vector<Event> events = read_events(read_text(folder / "e"));  // no torn record
  REQUIRE(events.size() == 4);
  CHECK(events[2].tag == "kept");
  CHECK(events[3].tag == "later");
}

TEST_CASE("a full disk is an error, not silence") {
  TemporaryFolder folder;
  TensorBoardWriter writer(folder / "e");
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const rlimit small{100, before.rlim_max};
  writer.scalar(std::string(500, 'x'), 0, 0.0F);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  const std::string why = message_of<dvla::Error>([&] { writer.flush(); });
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  CHECK(contains(why, "File too large"));
}
