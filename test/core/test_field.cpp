// dvla-test: asan
#include <doctest/doctest.h>

#include <numeric>
#include <type_traits>
#include <vector>

#include "dvla/core/field.hpp"

using dvla::Extents;
using dvla::Field;

TEST_CASE("Extents count, cut and prepend; an unused dimension is absent and not 1") {
  const Extents extents{2, 3, 4};
  CHECK(extents.rank() == 3);
  CHECK(extents.count() == 24);
  CHECK(extents.tail() == Extents{3, 4});
  CHECK(extents.tail(3) == Extents{});
  CHECK(extents.prepend(7) == Extents{7, 2, 3, 4});
  CHECK(Extents{}.count() == 1);
  CHECK_FALSE(Extents{2} == Extents{2, 1});
  CHECK(extents.sizes().size() == 3);
}

TEST_CASE("Extents of more sizes than they hold are refused, while compiling and while running") {
  constexpr Extents six{1, 2, 3, 4, 5, 6};
  static_assert(six.count() == 720 && six.tail().prepend(7)[0] == 7);
  CHECK_THROWS_WITH_AS((Extents{1, 2, 3, 4, 5, 6, 7}), "Extents hold at most 6 sizes, and more were given",
                       dvla::Error);
  CHECK_THROWS_AS(six.prepend(0), dvla::Error);
}

TEST_CASE("A field is a row-major view: at, rows and flat point into the same storage") {
  std::vector<int> storage(2 * 3 * 4);
  std::iota(storage.begin(), storage.end(), 0);
  const Field<int> field({2, 3, 4}, storage.data());
  CHECK(field.count() == 24);
  CHECK(field.bytes() == 24 * sizeof(int));
  CHECK(field.at(1).at(2)[3] == 1 * 12 + 2 * 4 + 3);
  CHECK(field.at(1).data() == storage.data() + 12);
  CHECK(field.at(0).rows(1, 2).extents() == Extents{2, 4});
  CHECK(field.at(0).rows(1, 2)[0] == 4);
  CHECK(field.rows(1, 1).extents() == Extents{1, 3, 4});
  CHECK(field.rows(1, 1).data() == storage.data() + 12);
  CHECK(field.flat().extents() == Extents{6, 4});
  CHECK(field.flat().at(5)[3] == 23);
  field.at(1)[0] = -1;
  CHECK(storage[12] == -1);
  CHECK(field.rows(2, 0).count() == 0);
}

TEST_CASE("A field says on which device it lies, and so do its parts; that costs no byte") {
  struct Bare {
    float* data;
    Extents extents;
  };
  static_assert(sizeof(Field<float>) == sizeof(Bare) && std::is_trivially_copyable_v<Field<float>>);
  CHECK(Field<float>({2, 3, 4}).device() == dvla::Device::cpu);
  Field<float> there({2, 3, 4}, nullptr, dvla::Device::cuda);
  CHECK(there.at(1).device() == dvla::Device::cuda);
  CHECK(there.rows(0, 1).device() == dvla::Device::cuda);
  CHECK(there.flat().device() == dvla::Device::cuda);
  const Field<float> copy = there;
  there = Field<float>({1});  // writes extents and device, each where it stands
  CHECK(there.device() == dvla::Device::cpu);
  CHECK(there.extents() == Extents{1});
  CHECK(copy.device() == dvla::Device::cuda);
  CHECK(copy.extents() == Extents{2, 3, 4});
}

TEST_CASE("A layout knows its extents without storage; an absent field stays absent") {
  Field<float> layout({5, 2});
  CHECK(layout.data() == nullptr);
  CHECK_FALSE(layout.absent());
  CHECK(layout.bytes() == 40);
  CHECK(layout.at(3).data() == nullptr);
  CHECK(layout.rows(1, 2).extents() == Extents{2, 2});
  std::vector<float> storage(10);
  layout.place(storage.data());
  CHECK(layout.at(4).data() == storage.data() + 8);
  const Field<float> none;
  CHECK(none.absent());
  CHECK(none.count() == 0);
  CHECK(none.bytes() == 0);
  CHECK(none.at(0).absent());
  CHECK(none.rows(0, 3).absent());
  CHECK(none.flat().absent());
}
