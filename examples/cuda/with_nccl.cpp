// All that a program of many processes needs for --device cuda and --collectives nccl: this line in one of
// its files, dvla::c10d and dvla::cuda. Where there is no nccl.h, --collectives nccl is refused.
#include <dvla/memory/cuda.hpp>
#include <dvla/placement/nccl_group.hpp>
