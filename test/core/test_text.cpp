// Text for people: numbers in printf's forms, and text from outside in one line.
#include <doctest/doctest.h>

#include "dvla/core/text.hpp"

TEST_CASE("numbers are printed as printf does, and what is too long is cut") {
  CHECK(dvla::printed("%s: %.1f of %d", "a", 0.25, 3) == "a: 0.2 of 3");
  CHECK(dvla::printed("%s", std::string(5000, 'x').c_str()).size() == 1023);
  CHECK(dvla::mebibytes(3 << 19) == "1.5 MiB");
  CHECK(dvla::mebibytes(3 << 19, 2) == "1.50 MiB");
}

TEST_CASE("errors show text in one line of sound UTF-8, cut between characters") {
  CHECK(dvla::detail::one_line("a\nb\xff\xc3\xa4\xc3") == "a?b?\xc3\xa4?");
  CHECK(dvla::detail::one_line("ab\xc3\xa4z", 3) == "ab...");
  CHECK(dvla::detail::one_line("ab\xc3\xa4z", 4) == "ab\xc3\xa4...");
  CHECK(dvla::detail::one_line(std::string(100, '\xff'), 80).size() < 90);
}
