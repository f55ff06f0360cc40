// What a model of a user's throws reaches the user as one sentence that names model, call, rows and extents,
// whoever called it.
#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

#include "dvla/model/calls.hpp"
#include "test/io/temporary_folder.hpp"
#include "test/pipeline/toy_pipeline.hpp"

namespace {

/// The call that throws what torch would, a backtrace behind it.
std::string throws_in;
void torch_words(const char* call) {
  if (throws_in == call)
    throw std::runtime_error(
        "mat1 and mat2 shapes cannot be multiplied (64x4 and 8x32)\nException raised from addmm");
}

struct OwnModel : dvla::testing::LinearModel {
  static constexpr std::string_view name = "OwnModel";
  using LinearModel::LinearModel;
  void act(const dvla::Observation& observation, std::span<const std::int64_t> rows, dvla::Decoding decoding,
           std::uint64_t seed, Decision& decision, dvla::Field<float> action) {
    torch_words("act");
    LinearModel::act(observation, rows, decoding, seed, decision, action);
  }
  void forward(const dvla::Observation& observation, const Decision& decision,
               std::span<const std::int64_t> rows, std::span<float> log_prob, std::span<float> entropy) {
    torch_words("forward");
    LinearModel::forward(observation, decision, rows, log_prob, entropy);
  }
  void backward(std::span<const float> d_log_prob, std::span<const float> d_entropy) {
    torch_words("backward");
    LinearModel::backward(d_log_prob, d_entropy);
  }
  double imitate(const dvla::Observation& observation, dvla::Field<float> action,
                 std::span<const std::int64_t> rows, double scale) {
    torch_words("imitate");
    return LinearModel::imitate(observation, action, rows, scale);
  }
};
using P = dvla::Pipeline<dvla::Sampler<dvla::Toy, OwnModel>, dvla::Trainer<dvla::GRPO>>;

}  // namespace

TEST_CASE("What a model throws names model, call, rows and extents, and no backtrace") {
  const std::string why =
      ": mat1 and mat2 shapes cannot be multiplied (64x4 and 8x32)";  // and nothing behind it
  struct Case {
    std::string call, where, rows;
  };
  auto config = dvla_test::small_config<P>(2);
  config.run.demonstrations = 64;
  for (const Case& each :
       {Case{"act", "lane 'sampling' failed at step 0: ",
             "act of 64 rows of "
             "proprioception [64, 4], instruction [64]"},
        Case{"forward", "lane 'training' failed at step 0: ",
             "forward of 64 rows of proprioception [64, 4], instruction [64]"},
        Case{"backward", "lane 'training' failed at step 0: ", "backward of 64 rows of "}}) {
    CAPTURE(each.call);
    dvla::Run<P, dvla::trace::Off> run(config);
    throws_in.clear();
    run.self_test();  // which train() would begin with
    throws_in = each.call;
    const std::string words = dvla_test::message_of<std::exception>([&] { run.train(); });
    CAPTURE(words);
    CHECK(words.starts_with(each.where + "the model OwnModel failed in " + each.call + " of "));
    CHECK(words.ends_with(why));
  }
  for (const std::string call : {"act", "forward"}) {
    CAPTURE(call);
    dvla::Run<P, dvla::trace::Off> run(config);
    throws_in = call;
    const std::string words = dvla_test::message_of<std::exception>([&] { run.self_test(); });
    CAPTURE(words);
    CHECK(words.find("the model OwnModel failed in " + call + " of ") != std::string::npos);
    CHECK(words.ends_with(why));
  }
  throws_in = "imitate";
  dvla::Run<P, dvla::trace::Off> run(config);
  const std::string words = dvla_test::message_of<std::exception>([&] { run.warm_start(); });
  CAPTURE(words);
  CHECK(words.find("the model OwnModel failed in imitate of ") != std::string::npos);
  throws_in.clear();
}

TEST_CASE("An Error passes as it is, and the original is nested in the sentence") {
  const dvla::Observation none;
  CHECK(dvla_test::message_of<std::exception>([&] {
          dvla::in_model<OwnModel>("act", 1, none, [] { throw dvla::ConfigError("model.width is 3"); });
        }) == "model.width is 3");
  try {
    dvla::in_model<OwnModel>("act", 1, none, []() -> int { throw std::out_of_range("far"); });
    FAIL("nothing was thrown");
  } catch (const dvla::Error& error) {
    CHECK(std::string(error.what()).starts_with("the model OwnModel failed in act of 1 row of "));
    CHECK_THROWS_AS(std::rethrow_if_nested(error), std::out_of_range);
  }
  CHECK(dvla::in_model<OwnModel>("act", 1, none, [] { return 3; }) == 3);
}
