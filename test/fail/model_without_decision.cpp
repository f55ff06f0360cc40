// expect: dvla: the model has no `Decision`
#include "machinery.inc"

struct Whole : OwnEnvironment {
  std::int64_t step(std::int64_t, dvla::Field<float>, dvla::Field<float>, dvla::Field<std::uint8_t>,
                    dvla::Field<std::uint8_t>, const dvla::Observation&, dvla::Arena&) {
    return 0;
  }
};
constexpr bool builds = dvla::buildable<With<Whole, Own<dvla::model_slot>>>();
