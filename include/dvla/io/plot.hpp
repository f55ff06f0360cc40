// Line charts as SVG through gnuplot (Debian package gnuplot-nox), run as a program: success curves with a
// band over seeds. Beside the picture it leaves the numbers (.csv) and the script (.gnuplot) so that users
// can draw their own.
#pragma once

#include <cmath>
#include <optional>

#include "dvla/core/text.hpp"
#include "dvla/io/atomic_file.hpp"
#include "dvla/io/child_process.hpp"

namespace dvla::io {

/// One line; y may hold NaN, which leaves a gap. low and high are both empty (no band) or as long as y.
struct PlotSeries {
  std::string name;
  std::vector<double> x, y;
  std::vector<double> low, high;
};

struct LineChart {
  std::string title, x_title, y_title;
  std::optional<std::pair<double, double>> y_range;  ///< {0, 1} for success rates
  std::vector<PlotSeries> series;
};

struct LineChartFiles {
  std::filesystem::path svg, csv, script;
};

namespace detail {

using dvla::detail::number_text;

/// `text` between `quote`s that are doubled inside: how gnuplot's single quotes and CSV's double quotes work.
inline std::string quoted(const std::string& text, char quote) {
  std::string out(1, quote);
  for (const char c : text) out.append(c == quote ? 2 : 1, c);
  return out + quote;
}

inline void check_chart(const LineChart& chart, const std::filesystem::path& svg) {
  const auto refuse = [&](const std::string& why) {
    throw Error("cannot draw '" + svg.string() + "': " + why);
  };
  // A line break would end the quoted string in gnuplot's language, and what follows would be run.
  const auto check_text = [&](const std::string& text, const char* what) {
    if (text.size() > 1000 || std::any_of(text.begin(), text.end(), [](char c) {
          return static_cast<unsigned char>(c) < 32 || c == 127;
        }))
      refuse(std::string("the ") + what + " has a control character or more than 1000 bytes");
  };
  check_text(svg.filename().string(), "file name");
  check_text(chart.title, "title");
  check_text(chart.x_title, "x title");
  check_text(chart.y_title, "y title");
  if (chart.y_range && !(std::isfinite(chart.y_range->first) && std::isfinite(chart.y_range->second) &&
                         chart.y_range->first < chart.y_range->second))
    refuse("y_range must be two finite numbers, the lower one first");
  bool any = false;
  for (const PlotSeries& series : chart.series) {
    check_text(series.name, "name of a series");
    const std::size_t n = series.x.size();
    const bool band = !series.low.empty() || !series.high.empty();
    if (series.y.size() != n || (band && (series.low.size() != n || series.high.size() != n)))
      refuse("series '" + series.name + "' has x, y, low and high of different lengths");
    for (std::size_t i = 0; i < n; ++i)
      any = any || (std::isfinite(series.x[i]) && std::isfinite(series.y[i]));
  }
  if (!any) refuse("no series has a point with finite x and y");
}

inline std::string chart_csv(const LineChart& chart) {
  std::string csv = "series,x,y,low,high\n";
  for (const PlotSeries& series : chart.series)
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      const bool band = !series.low.empty();
      csv += quoted(series.name, '"') + "," + number_text(series.x[i]) + "," + number_text(series.y[i]) +
             "," + number_text(band ? series.low[i] : series.y[i]) + "," +
             number_text(band ? series.high[i] : series.y[i]) + "\n";
    }
  return csv;
}

inline std::string chart_script(const LineChart& chart, const std::string& csv_name,
                                const std::string& svg_name) {
  // Okabe and Ito's colours, told apart by everybody; dashes follow when they run out.
  constexpr std::array<const char*, 7> colors{"0072B2", "D55E00", "009E73", "CC79A7",
                                              "E69F00", "56B4E9", "000000"};
  // "./" first: gnuplot takes a name that begins with '<' or '|' for a command.
  std::string script = "# gnuplot -d " + quoted("./" + svg_name + ".gnuplot", '\'') + " > picture.svg\n";
  script +=
      "set terminal svg noenhanced size 800,480 font 'DejaVu Sans,Helvetica,Arial,sans-serif,13' background "
      "'#ffffff' linewidth 1\n"
      "set datafile separator comma\n"
      "set border 3 linecolor rgb '#777777'\n"
      "set tics nomirror out scale 0.6 textcolor rgb '#333333'\n"
      "set grid linecolor rgb '#dddddd' linewidth 1 linetype 1 dashtype solid\n"
      "set key outside bottom center horizontal reverse Left samplen 2 width 2 height 0.6 textcolor "
      "rgb '#333333'\n"
      "set lmargin 9\nset rmargin 4\n"
      "set autoscale xfix\n";
  double widest = 0;
  for (const PlotSeries& series : chart.series)
    for (const double x : series.x) widest = std::max(widest, std::abs(x));
  if (widest >= 10'000) script += "set format x '%.0s%c'\n";  // 50k, 2M
  script += "set title " + quoted(chart.title, '\'') + " font ',16' textcolor rgb '#111111'\n";
  script += "set xlabel " + quoted(chart.x_title, '\'') + " textcolor rgb '#333333'\n";
  script += "set ylabel " + quoted(chart.y_title, '\'') + " textcolor rgb '#333333'\n";
  if (chart.y_range)
    script +=
        "set yrange [" + number_text(chart.y_range->first) + ":" + number_text(chart.y_range->second) + "]\n";
  const std::string file = quoted("./" + csv_name, '\'');
  std::string bands, lines;
  std::size_t first = 0;
  for (std::size_t i = 0; i < chart.series.size(); ++i) {
    const PlotSeries& series = chart.series[i];
    if (series.x.empty()) continue;
    const std::string rows = file + " skip 1 every ::" + std::to_string(first) +
                             "::" + std::to_string(first + series.x.size() - 1);
    const std::string color = colors[i % colors.size()];
    if (!series.low.empty())
      bands += rows + " using 2:4:5 with filledcurves fillcolor rgb '#CC" + color + "' notitle, ";
    lines += rows + " using 2:3 with lines linewidth 2.2 dashtype " +
             std::to_string(i / colors.size() % 5 + 1) + " linecolor rgb '#" + color + "' title " +
             quoted(series.name, '\'') + ", ";
    first += series.x.size();
  }
  lines.resize(lines.size() - 2);
  return script + "plot " + bands + lines + "\n";
}

}  // namespace detail

/// Writes <svg>, and beside it the same name with .csv and .gnuplot. The SVG appears whole or not at all.
/// Throws Error when something about the chart is wrong, when gnuplot is missing (the CSV and the script
/// stay) or fails, and DeadlineError when it takes longer than `deadline`. Thread-safe for different paths.
inline LineChartFiles write_line_chart(const std::filesystem::path& svg, const LineChart& chart,
                                       std::chrono::milliseconds deadline = std::chrono::seconds(30)) {
  detail::check_chart(chart, svg);
  LineChartFiles files{svg, svg, svg};
  files.csv.replace_extension(".csv");
  files.script.replace_extension(".gnuplot");
  if (files.csv == svg || files.script == svg)
    throw Error("cannot draw '" + svg.string() + "': give the picture a name that ends in .svg");
  write_file(files.csv, detail::chart_csv(chart));
  write_file(files.script, detail::chart_script(chart, files.csv.filename().string(), svg.stem().string()));
  // -d: without the user's own settings file, so the picture is the same everywhere.
  const ChildResult result =
      run_child({"gnuplot", "-d", "./" + files.script.filename().string()}, svg.parent_path(), deadline);
  if (result.exit_code == 127)
    throw Error("cannot draw '" + svg.string() +
                "' because gnuplot is not installed: install the Debian package " +
                "gnuplot-nox; the numbers are in '" + files.csv.string() + "'");
  if (result.exit_code != 0 || result.out.find("</svg>") == std::string::npos)
    throw Error("cannot draw '" + svg.string() + "': gnuplot ended with exit code " +
                std::to_string(result.exit_code) + " and said: " + result.err.substr(0, 500));
  write_file(svg, result.out);
  return files;
}

}  // namespace dvla::io
