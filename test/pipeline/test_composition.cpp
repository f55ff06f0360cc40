// Composition as a type list: order, defaults, neighbours, replace, table, describe. With dvla.hpp alone.
#include <dvla/dvla.hpp>

#if defined(TORCH_VERSION) || defined(C10_MACROS_MACROS_H_) || defined(mjVERSION_HEADER) || \
    defined(__TBB_task_arena_H)
#error "dvla.hpp must not include torch, MuJoCo or oneTBB"
#endif

#include <doctest/doctest.h>

#include <boost/hana/at_key.hpp>
#include <boost/hana/equal.hpp>
#include <boost/hana/size.hpp>
#include <dvla/pipeline/table.hpp>
#include <type_traits>

namespace hana = boost::hana;
using namespace dvla;

namespace {

template <class One, class Two>
constexpr bool same_policies = std::is_same_v<typename One::policies, typename Two::policies>;

/// A user's policy: descriptor and machinery in one struct, of an algorithm that must not lag.
struct Careful {
  using slot = algorithm_slot;
  using knobs = NoKnobs;
  static constexpr std::string_view name = "Careful";
  static constexpr int max_staleness = 0;
};

/// For a policy of each of the nine slots: x where `Word` refuses to hold it.
template <template <class...> class Word>
std::string refusals() {
  return []<class... Policies>(detail::list<Policies...>) {
    return std::string{(detail::held_by<typename Policies::slot, Word<Policies>> ? '.' : 'x')...};
  }(Pipeline<Toy, GRPO>::policies{});
}

}  // namespace

TEST_CASE("the user's own spelling compiles as a type list") {
  using P = Pipeline<Sampler<ManiSkill>, Trainer<GRPO, FSDP>, ControlPlane<Gloo>>;
  static_assert(std::is_same_v<P::environment, ManiSkill>);
  static_assert(std::is_same_v<P::model, TinyVLA<TokenHead>>);
  static_assert(std::is_same_v<P::algorithm, GRPO>);
  static_assert(std::is_same_v<P::sharding, FSDP>);
  static_assert(std::is_same_v<P::control_plane, Gloo>);
  static_assert(std::is_same_v<P::memory, DualPool>);
  static_assert(std::is_same_v<P::placement, CoLocated>);
  static_assert(std::is_same_v<P::schedule, Swimlane<1>>);
  using Longer = Pipeline<Sampler<ManiSkill, Pi05>, Trainer<GRPO, FSDP>, ControlPlane<Gloo>>;
  static_assert(std::is_same_v<Longer::model, Pi05>);
}

TEST_CASE("order is free, policies may stand bare, and a model in either of two words") {
  using One = Pipeline<Sampler<Toy, TinyVLA<FlowHead>>, Trainer<GRPO>, Schedule<Synchronous>>;
  using Two = Pipeline<Synchronous, GRPO, TinyVLA<FlowHead>, Toy>;
  using Three = Pipeline<Schedule<Synchronous>, Trainer<TinyVLA<FlowHead>>, GRPO, Sampler<>, Sampler<Toy>>;
  CHECK(same_policies<One, Two>);
  CHECK(same_policies<One, Three>);
}

TEST_CASE("a stage word refuses every policy that is not its own") {
  CHECK(refusals<Sampler>() == "..xxxxxxx");
  CHECK(refusals<Trainer>() == "x...xxxxx");
  CHECK(refusals<DataPlane>() == "xxxx.xxxx");
  CHECK(refusals<ControlPlane>() == "xxxxx.xxx");
  CHECK(refusals<Memory>() == "xxxxxx.xx");
  CHECK(refusals<Placement>() == "xxxxxxx.x");
  CHECK(refusals<Schedule>() == "xxxxxxxx.");
}

TEST_CASE("what is not named has a default, and says so") {
  using P = Pipeline<Toy, GRPO>;
  CHECK(same_policies<P, Pipeline<Toy, TinyVLA<TokenHead>, GRPO, Unsharded, DataPlane<InProcess>,
                                  ControlPlane<InProcess>, DualPool, CoLocated, Swimlane<1>>>);
  CHECK_FALSE(P::is_default<environment_slot>);
  CHECK_FALSE(P::is_default<algorithm_slot>);
  CHECK(P::is_default<model_slot>);
  CHECK(P::is_default<schedule_slot>);
  CHECK(std::is_same_v<P::policy<memory_slot>, DualPool>);
}

TEST_CASE("defaults look at their neighbours") {
  using Sharded = Pipeline<Toy, Trainer<GRPO, FSDP>>;
  CHECK(std::is_same_v<Sharded::data_plane, C10d>);
  CHECK(std::is_same_v<Sharded::control_plane, Gloo>);
  CHECK(Sharded::is_default<data_plane_slot>);
  using Weights = Pipeline<Toy, GRPO, ControlPlane<Gloo>>;
  CHECK(std::is_same_v<Weights::data_plane, C10d>);
  using Data = Pipeline<Toy, GRPO, DataPlane<C10d>>;
  CHECK(std::is_same_v<Data::control_plane, Gloo>);
  using Apart = Pipeline<Toy, GRPO, Placement<Separated<3, 1>>>;
  CHECK(std::is_same_v<Apart::data_plane, C10d>);
  CHECK(std::is_same_v<Apart::control_plane, Gloo>);
  CHECK(std::is_same_v<Pipeline<Toy, Careful>::schedule, Swimlane<0>>);
}

TEST_CASE("InProcess is the plane that the word around it says") {
  using P = Pipeline<Toy, GRPO, DataPlane<InProcess>, ControlPlane<InProcess>>;
  CHECK(std::is_same_v<P::data_plane, InProcessData>);
  CHECK(std::is_same_v<P::control_plane, InProcessWeights>);
  CHECK_FALSE(P::is_default<data_plane_slot>);
}

TEST_CASE("replace swaps policies by slot and looks at neighbours again") {
  using P = Pipeline<Sampler<Toy>, Trainer<GRPO>>;
  using Q = P::replace<MuJoCo<Reach>>;
  CHECK(std::is_same_v<Q::environment, MuJoCo<Reach>>);
  CHECK(std::is_same_v<Q::algorithm, GRPO>);
  using R = P::replace<FSDP, Schedule<Synchronous>>;
  CHECK(std::is_same_v<R::sharding, FSDP>);
  CHECK(std::is_same_v<R::data_plane, C10d>);
  CHECK(std::is_same_v<R::schedule, Synchronous>);
  CHECK(same_policies<R::replace<Unsharded, Swimlane<1>>, P>);
  CHECK(std::is_same_v<Pipeline<Toy, GRPO, FSDP>::replace<DataPlane<C10d>>::data_plane, C10d>);
}

TEST_CASE("the table is a hana::map from slot to policy") {
  using P = Pipeline<Toy, GRPO>;
  constexpr auto table = P::table();
  static_assert(hana::size(table) == hana::size_c<9>);
  static_assert(table[hana::type_c<environment_slot>] == hana::type_c<Toy>);
  static_assert(table[hana::type_c<schedule_slot>] == hana::type_c<Swimlane<1>>);
  CHECK(true);
}

TEST_CASE("describe prints every slot, its policy, whether it is a default, and its facts") {
  CHECK(Pipeline<Sampler<LIBERO>, Trainer<BasicGRPO<Uncorrected>, FSDP>, ControlPlane<Gloo>>::describe() ==
        "environment    LIBERO\n"
        "model          TinyVLA<TokenHead> (default)\n"
        "algorithm      GRPO<Uncorrected>                     allows staleness 1\n"
        "sharding       FSDP                                  spans processes\n"
        "data_plane     C10d (default)                        spans processes\n"
        "control_plane  Gloo                                  spans processes\n"
        "memory         DualPool (default)\n"
        "placement      CoLocated (default)\n"
        "schedule       Swimlane<1> (default)                 staleness up to 1\n");
}

TEST_CASE("describe of a configuration names the adapter between model and environment") {
  using P = Pipeline<Sampler<ManiSkill>, Trainer<GRPO>>;
  RunKnobs run;
  CHECK(P::describe(run) == P::describe() + "adapter        bounds (default)\n");
  run.action_statistics = "norm_stats.json";
  CHECK(P::describe(run) == P::describe() + "adapter        statistics in norm_stats.json\n");
}

TEST_CASE("a configuration has a section per slot, with the policy's own defaults") {
  Pipeline<Toy, GRPO>::config config;
  CHECK(config.algorithm.group == 8);
  CHECK(config.environment.environments == 64);
  CHECK(config.schedule.staleness == 1);
  const Config<Pipeline<Toy, GRPO, Swimlane<0>>> without_lag;
  CHECK(without_lag.schedule.staleness == 0);
}
