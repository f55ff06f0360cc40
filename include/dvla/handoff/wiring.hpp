// The wiring between lanes: a oneTBB flow graph whose edges are the arrows of the paper's Figure 2.
// The ONLY header that includes flow_graph.h.
// Each lane has one lightweight async_node. Its body posts the token (to a mailbox, or as a permit) and
// returns; the lane answers later, from its own thread, through the node's gateway. Bodies run inside send():
// no TBB task is made and no TBB worker is needed, so one core and a global_control of 1 are enough. Blocking
// work never enters a node (blocking flow-graph nodes deadlock on two cores).
#pragma once

#include <oneapi/tbb/flow_graph.h>

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/handoff/token.hpp"

namespace dvla {

/// Build with add() and connect() before anything is sent; then send() may be called from any thread.
class wiring {
 public:
  /// Takes a token without waiting and without throwing; false: no room.
  using post = std::function<bool(const Token&)>;
  class node;

  /// A place in the graph: `deliver` is called for every token that arrives there.
  node& add(post deliver);
  /// One more arrow. A reader of metrics or checkpoints is one more connect().
  void connect(node& from, node& to);
  /// Sends `token` along every arrow that leaves `from`; it has been posted everywhere when this returns.
  /// Throws Error if a receiver had no room: the schedule must bound what is under way.
  void send(node& from, const Token& token);

 private:
  oneapi::tbb::flow::graph graph_;
  std::vector<std::unique_ptr<node>> nodes_;
  std::atomic<bool> refused_{false};
};

class wiring::node {
  using async_node = oneapi::tbb::flow::async_node<Token, Token, oneapi::tbb::flow::lightweight>;

 public:
  node(oneapi::tbb::flow::graph& graph, post deliver, std::atomic<bool>& refused)
      : async_(
            graph, oneapi::tbb::flow::unlimited,
            // noexcept, or TBB makes a task of it instead of calling it in place
            [deliver = std::move(deliver), &refused](const Token& token, async_node::gateway_type&) noexcept {
              if (!deliver(token)) refused.store(true, std::memory_order_relaxed);
            }) {}

 private:
  friend class wiring;
  async_node async_;
};

inline wiring::node& wiring::add(post deliver) {
  return *nodes_.emplace_back(std::make_unique<node>(graph_, std::move(deliver), refused_));
}

inline void wiring::connect(node& from, node& to) { oneapi::tbb::flow::make_edge(from.async_, to.async_); }

inline void wiring::send(node& from, const Token& token) {
  from.async_.gateway().try_put(token);
  if (refused_.load(std::memory_order_relaxed))
    throw Error("wiring: no room for the token of batch ", token.batch,
                "; give the receiving mailbox as many places as there can be live batches");
}

}  // namespace dvla
