// Text for people: numbers in printf's forms, and text from outside in one line.
#include <doctest/doctest.h>

#include <clocale>
#include <sstream>
#include <string>
#include <vector>

#include "dvla/core/text.hpp"
#include "test/core/foreign_locale.hpp"

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

TEST_CASE("of a long list some are named, and how many more there are") {
  const std::vector<std::string> all{"a", "b", "c"};
  CHECK(dvla::detail::some_of(all, 3) == "a, b, c");
  CHECK(dvla::detail::some_of(all, 1) == "a and 2 more");
  CHECK(dvla::detail::some_of({}, 1).empty());
}

TEST_CASE("numbers in text do not depend on the locale that a program has chosen, which stays as it is") {
  const dvla_test::ForeignLocale foreign;
  const std::string point = std::localeconv()->decimal_point;
  CHECK(dvla::printed("%.3f %g %d %lld", 1234.5, 0.25, 1000, 1000000LL) == "1234.500 0.25 1000 1000000");
  CHECK(dvla::detail::number_text(1234.5) == "1234.5");
  CHECK(dvla::mebibytes(std::size_t{1234} << 20) == "1234.0 MiB");
  CHECK(std::localeconv()->decimal_point == point);
  std::ostringstream stream;
  stream << 1000;
  CHECK(stream.str() == "1.0.0.0");  // the test's locale is in force
}
