// A program's choice of locale as it hurts most: C++ streams group every digit, and where one is installed the
// C library's decimal point is a comma.
#pragma once

#include <clocale>
#include <locale>
#include <string>

namespace dvla_test {

/// While it lives.
class ForeignLocale {
 public:
  ForeignLocale()
      : numeric_(std::setlocale(LC_NUMERIC, nullptr)),
        before_(std::locale::global(std::locale(std::locale::classic(), new Grouping))) {
    for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "nl_NL.UTF-8", "de_DE", ""})
      if (std::setlocale(LC_NUMERIC, name) != nullptr && std::localeconv()->decimal_point[0] == ',') break;
  }
  ForeignLocale(const ForeignLocale&) = delete;
  ForeignLocale& operator=(const ForeignLocale&) = delete;
  ~ForeignLocale() {
    std::locale::global(before_);
    std::setlocale(LC_NUMERIC, numeric_.c_str());
  }

 private:
  struct Grouping : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\1"; }
  };
  std::string numeric_;
  std::locale before_;
};

}  // namespace dvla_test
