// What the conformance suites are made of: the sentences that a suite returns, how a call ended, and a call in a
// thread of its own. Framework-free.
#pragma once

#include <algorithm>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dvla/core/type_name.hpp"
#include "dvla/placement/channel.hpp"

namespace dvla::testing::detail {

/// How a call ended: "done", or the kind of error and its text.
template <class Call>
std::string outcome(Call&& call) {
  try {
    call();
    return "done";
  } catch (const PeerError& error) {
    return std::string("PeerError: ") + error.what();
  } catch (const DeadlineError& error) {
    return std::string("DeadlineError: ") + error.what();
  } catch (const Error& error) {
    return std::string("Error: ") + error.what();
  } catch (const std::exception& error) {
    return std::string("not an Error: ") + error.what();
  }
}

/// A suite's sentences, one per violation, each once: `expect(plane->latest() < 0, "latest() must be ...")`.
class Findings {
 public:
  void operator()(bool holds, const std::string& sentence) {
    if (!holds && std::ranges::find(sentences, sentence) == sentences.end()) sentences.push_back(sentence);
  }
  /// `call` must throw a Kind, in whose words `says` is.
  template <class Kind = Error, class Call>
  void refused(const std::string& what, const std::string& says, Call&& call) {
    try {
      call();
      (*this)(false, "must be refused: " + what);
    } catch (const Kind& error) {
      (*this)(std::string(error.what()).find(says) != std::string::npos,
              "the refusal must say '" + says + "': " + what + ": " + error.what());
    } catch (const std::exception& error) {
      (*this)(false, "must be refused with " + std::string(type_name<Kind>) + ": " + what +
                         ", not with: " + error.what());
    }
  }

  std::vector<std::string> sentences;
};

/// A call in a thread of its own, begun now; the end waits for it.
class Beside {
 public:
  template <class Call>
  explicit Beside(Call call) : thread_([this, call = std::move(call)]() mutable { how_ = outcome(call); }) {}
  /// How it ended, once it has.
  const std::string& how() {
    if (thread_.joinable()) thread_.join();
    return how_;
  }

 private:
  std::string how_;
  std::jthread thread_;
};

}  // namespace dvla::testing::detail
