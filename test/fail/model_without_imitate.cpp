// expect: dvla: the model lacks a member, or has it with other types
#include "machinery.inc"

struct Whole : OwnEnvironment {
  std::int64_t step(std::int64_t, dvla::Field<float>, dvla::Field<float>, dvla::Field<std::uint8_t>,
                    dvla::Field<std::uint8_t>, const dvla::Observation&, dvla::Arena&) {
    return 0;
  }
};
/// All that ModelMachinery asks for, but imitate().
struct OwnModel : Own<dvla::model_slot> {
  struct Decision {
    dvla::Field<float> log_prob;
  };
  Decision decision_layout(dvla::Extents) const { return {}; }
  void act(const dvla::Observation&, dvla::Decoding, std::uint64_t, Decision&, dvla::Field<float>) {}
  void forward(const dvla::Observation&, const Decision&, std::span<const std::int64_t>, std::span<float>,
               std::span<float>) {}
  void backward(std::span<const float>, std::span<const float>) {}
  std::span<float> parameters() { return {}; }
  std::span<float> gradients() { return {}; }
  const std::vector<dvla::NamedTensor>& tensors() const { return names; }
  static void use_threads(int) {}
  std::vector<dvla::NamedTensor> names;
};
BOOST_HANA_ADAPT_STRUCT(OwnModel::Decision, log_prob);
constexpr bool builds = dvla::buildable<With<Whole, OwnModel>>();
