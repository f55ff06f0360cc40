// Records: plain structs of Fields, adapted for Boost.Hana, described once. Storage in the pool, checksum,
// queue, wire layout and tests all iterate over that one list of members. Design: "Data".
// Time-major: a trajectory's fields are [T, B, ...], T decisions (chunks), B episodes; contiguous per field.
// Does no allocation: `record_bytes` says how much, `place_record` lays the fields out in memory you own.
#pragma once

#include <boost/hana/accessors.hpp>
#include <boost/hana/adapt_struct.hpp>
#include <boost/hana/concept/struct.hpp>
#include <boost/hana/core/to.hpp>
#include <boost/hana/first.hpp>
#include <boost/hana/for_each.hpp>
#include <boost/hana/second.hpp>
#include <boost/hana/string.hpp>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "dvla/core/checksum.hpp"
#include "dvla/core/field.hpp"

namespace dvla {

template <class Type>
concept Record = boost::hana::Struct<std::remove_cvref_t<Type>>::value;

namespace detail {
template <class Member, class Visit>
constexpr void visit_fields(const char* name, Member& member, Visit& visit) {
  using Type = std::remove_cvref_t<Member>;
  if constexpr (requires { member.absent(); }) {
    if (!member.absent()) visit(name, member);
  } else if constexpr (requires { member.begin(); }) {
    for (auto& element : member) visit_fields(name, element, visit);
  } else {
    static_assert(Record<Type>,
                  "dvla: a record's member must be a Field, an array of Fields or another record");
    boost::hana::for_each(boost::hana::accessors<Type>(), [&](auto accessor) {
      visit_fields(boost::hana::to<const char*>(boost::hana::first(accessor)),
                   boost::hana::second(accessor)(member), visit);
    });
  }
}
}  // namespace detail

/// Calls `visit(name, field)` for every field that is present, in the order of declaration. Array members
/// (cameras) repeat their name.
template <Record Type, class Visit>
constexpr void for_each_field(Type&& record, Visit visit) {
  detail::visit_fields("", record, visit);
}

/// Throws ConfigError, naming the field, unless all of the record lies where `who` takes it.
template <Record Type>
void check_lies_on(const Type& record, Device where, std::string_view who) {
  for_each_field(record, [&](const char* name, const auto& field) {
    if (field.device() != where)
      throw ConfigError(who, " takes the field '", name, "' on ", enum_name(where), ", and it lies on ",
                        enum_name(field.device()));
  });
}

inline constexpr std::size_t record_alignment = 64;

/// Bytes of one contiguous block that holds the record, every field on a 64-byte line.
template <Record Type>
std::size_t record_bytes(const Type& record) {
  std::size_t bytes = 0;
  for_each_field(record, [&](const char*, const auto& field) {
    bytes += (field.bytes() + record_alignment - 1) / record_alignment * record_alignment;
  });
  return bytes;
}

/// Points the record's fields into `block` (host memory, aligned to 64, of at least record_bytes). Returns the
/// bytes used. Throws ConfigError where a field is to lie on another device.
template <Record Type>
std::size_t place_record(Type& record, std::byte* block) {
  check_lies_on(record, Device::cpu, "a record in host memory");
  std::size_t offset = 0;
  for_each_field(record, [&](const char*, auto& field) {
    using Element = typename std::remove_cvref_t<decltype(field)>::element_type;
    field.place(reinterpret_cast<Element*>(block + offset));
    offset += (field.bytes() + record_alignment - 1) / record_alignment * record_alignment;
  });
  return offset;
}

/// XXH3-64 over the bytes of every field, in order. Padding between fields does not count.
template <Record Type>
std::uint64_t record_checksum(const Type& record) {
  Checksum sum;
  for_each_field(record, [&](const char*, const auto& field) { sum.update(std::as_bytes(field.span())); });
  return sum.value();
}

/// The same record with every field reduced by `cut(field)`: a time step, a range of rows, a flattening.
template <Record Type, class Cut>
constexpr Type cut_record(Type record, Cut cut) {
  for_each_field(record, [&](const char*, auto& field) { field = cut(field); });
  return record;
}

/// A record with storage of its own: one block from `memory` (of the host), given back at the end.
template <Record Type>
class OwnedRecord {
 public:
  OwnedRecord(Type layout, std::pmr::memory_resource& memory)
      : record_(layout), memory_(&memory), bytes_(record_bytes(layout)) {
    check_lies_on(record_, Device::cpu, "a record in host memory");  // before there is something to give back
    block_ = static_cast<std::byte*>(memory_->allocate(bytes_, record_alignment));
    place_record(record_, block_);
  }
  OwnedRecord(const OwnedRecord&) = delete;
  OwnedRecord& operator=(const OwnedRecord&) = delete;
  ~OwnedRecord() { memory_->deallocate(block_, bytes_, record_alignment); }

  Type& operator*() { return record_; }
  Type* operator->() { return &record_; }
  std::span<std::byte> block() const { return {block_, bytes_}; }

 private:
  Type record_;
  std::pmr::memory_resource* memory_;
  std::size_t bytes_;
  std::byte* block_;
};

}  // namespace dvla
