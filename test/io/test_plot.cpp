// dvla-test: gnuplot
#include <doctest/doctest.h>

#include <cstdlib>

#include "dvla/io/plot.hpp"
#include "temporary_folder.hpp"

using dvla::io::LineChart;
using dvla::io::write_line_chart;
using namespace dvla_test;

namespace {

LineChart chart() {
  LineChart out{"Push: success", "environment steps", "success rate", {{0.0, 1.0}}, {}};
  for (const double speed : {60.0, 90.0}) {
    dvla::io::PlotSeries series{speed < 70 ? "Swimlane, K = 1" : "Synchronous", {}, {}, {}, {}};
    for (int i = 0; i <= 150; ++i) {
      const double y = 0.25 + 0.72 * (1 - std::exp(-i / speed * 2)) + 0.02 * std::sin(i * 0.7);
      series.x.push_back(i * 2048.0);
      series.y.push_back(y);
      series.low.push_back(y - 0.06);
      series.high.push_back(std::min(1.0, y + 0.05));
    }
    out.series.push_back(series);
  }
  return out;
}

/// PATH for one scope.
class PathIs {
 public:
  explicit PathIs(const std::string& value) : before_(std::getenv("PATH")) {
    ::setenv("PATH", value.c_str(), 1);
  }
  ~PathIs() { ::setenv("PATH", before_.c_str(), 1); }

 private:
  std::string before_;
};

}  // namespace

TEST_CASE("a chart with bands becomes an SVG with its titles, and its numbers stay beside it") {
  TemporaryFolder folder;
  const auto files = write_line_chart(folder / "success.svg", chart());
  const std::string svg = read_text(files.svg);
  for (const char* text :
       {"<svg", "</svg>", "Push: success", "environment steps", "success rate", "Swimlane, K = 1"})
    CHECK(contains(svg, text));
  const std::string csv = read_text(folder / "success.csv");
  CHECK(csv.starts_with("series,x,y,low,high\n\"Swimlane, K = 1\",0,0.25,0.19,0.3\n"));
  CHECK(std::count(csv.begin(), csv.end(), '\n') == 1 + 2 * 151);
  CHECK(std::filesystem::exists(folder / "success.gnuplot"));
  CHECK(files_in(folder.path()) == 3);
  if (const char* keep = std::getenv("DVLA_KEEP_PLOT")) write_text(keep, svg);  // to look at it
}

TEST_CASE("gaps, one point, lines without a band and no y range are drawn") {
  TemporaryFolder folder;
  LineChart plain{"",
                  "",
                  "",
                  {},
                  {{"gap", {0, 1, 2, 3}, {0.5, std::nan(""), 0.7, 1e6}, {}, {}}, {"empty", {}, {}, {}, {}}}};
  write_line_chart(folder / "gap.svg", plain);
  CHECK(contains(read_text(folder / "gap.svg"), "gap"));
  LineChart point{"p", "", "", {{0.0, 1.0}}, {{"one", {5}, {0.5}, {}, {}}}};
  write_line_chart(folder / "point.svg", point);
  CHECK(contains(read_text(folder / "point.svg"), "</svg>"));
}

TEST_CASE("texts and names that look like commands are only texts and names") {
  TemporaryFolder folder;
  LineChart evil = chart();
  evil.title = "it's `touch pwned1` $(touch pwned2) ' ; system('touch pwned3') # _{x}^2 @a & <b>";
  evil.series[0].name = "\"; system \"touch pwned4\"";
  for (const char* name :
       {"<touch pwned5.svg", "|touch pwned6.svg", "-e system.svg", "it's `touch pwned7`.svg"}) {
    CAPTURE(name);
    write_line_chart(folder / name, evil);
    CHECK(contains(read_text(folder / name), "</svg>"));
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    CHECK_FALSE(entry.path().filename().string().starts_with("pwned"));
  CHECK(files_in(folder.path()) == 12);
  evil.x_title = "x\nsystem 'touch pwned8'";
  CHECK(contains(message_of<dvla::Error>([&] { write_line_chart(folder / "b.svg", evil); }),
                 "control character"));
}

TEST_CASE("charts that make no sense are refused with a sentence") {
  TemporaryFolder folder;
  const auto why = [&](auto change, const char* name = "a.svg") {
    LineChart broken = chart();
    change(broken);
    return message_of<dvla::Error>([&] { write_line_chart(folder / name, broken); });
  };
  CHECK(contains(why([](LineChart& c) { c.series.clear(); }), "no series has a point"));
  CHECK(contains(why([](LineChart& c) { c.series[0].y.pop_back(); }), "different lengths"));
  CHECK(contains(why([](LineChart& c) { c.series[1].low.clear(); }), "different lengths"));
  CHECK(contains(why([](LineChart& c) { c.y_range = {1.0, 0.0}; }), "y_range"));
  CHECK(contains(why([](LineChart&) {}, "a.csv"), "ends in .svg"));
  CHECK(contains(why([](LineChart&) {}, "no/a.svg"), "No such file"));
  CHECK(files_in(folder.path()) == 0);
}

TEST_CASE("without gnuplot the error names the package, and the CSV stays") {
  TemporaryFolder folder, empty;
  const PathIs path(empty.path().string());
  const std::string why = message_of<dvla::Error>([&] { write_line_chart(folder / "a.svg", chart()); });
  CHECK(contains(why, "gnuplot-nox"));
  CHECK(contains(why, (folder / "a.csv").string()));
  CHECK(std::filesystem::exists(folder / "a.csv"));
  CHECK_FALSE(std::filesystem::exists(folder / "a.svg"));
}

TEST_CASE("a gnuplot that hangs is killed, one that fails is quoted") {
  TemporaryFolder folder, fake;
  const PathIs path(fake.path().string() + ":" + std::getenv("PATH"));
  write_text(fake / "gnuplot", "#!/bin/sh\nexec sleep 1000\n");
  std::filesystem::permissions(fake / "gnuplot", std::filesystem::perms::owner_all);
  CHECK_THROWS_AS(write_line_chart(folder / "a.svg", chart(), std::chrono::milliseconds(100)),
                  dvla::DeadlineError);
  write_text(fake / "gnuplot", "#!/bin/sh\necho 'line 0: bad' >&2; exit 1\n");
  CHECK(contains(message_of<dvla::Error>([&] { write_line_chart(folder / "a.svg", chart()); }),
                 "gnuplot ended with exit code 1 and said: line 0: bad"));
  CHECK_FALSE(std::filesystem::exists(folder / "a.svg"));
}
