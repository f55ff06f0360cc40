// A run as a page that any browser opens without a network: one file, data and charts inside. What stands on it is
// page_template.hpp's; what the data are, pipeline/page.hpp says. Charts are Chart.js's (MIT), which CMake writes into
// a header where Debian's libjs-chart.js is installed; without it the page has tables, and says so.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "dvla/io/atomic_file.hpp"
#include "dvla/io/page_template.hpp"

#if __has_include("dvla/io/chart_js.hpp")
#include "dvla/io/chart_js.hpp"
#else
namespace dvla::io::detail {
inline constexpr std::string_view chart_js{};
}
#endif

namespace dvla::io {

/// `data` where the template has its place for it; nothing in it can end the script that it stands in.
inline std::string page_html(const nlohmann::json& data) {
  std::string text = data.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), safe;
  for (const char each : text) {
    if (each == '<')
      safe += "\\u003c";
    else
      safe += each;
  }
  std::string page(detail::page_template);
  const auto fill = [&](std::string_view place, std::string_view with) {
    page.replace(page.find(place), place.size(), with);
  };
  fill("@CHART@", detail::chart_js);
  fill("@DATA@", safe);
  return page;
}

/// Throws Error where it cannot be written.
inline void write_page(const std::filesystem::path& path, const nlohmann::json& data) {
  write_file(path, page_html(data));
}

}  // namespace dvla::io
