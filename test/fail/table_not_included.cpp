// expect: dvla: P::table() needs #include <dvla/pipeline/table.hpp>
#include <dvla/dvla.hpp>

void look() { dvla::Pipeline<dvla::Toy, dvla::GRPO>::table(); }
