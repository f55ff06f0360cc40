// All that a program needs for --device cuda: this line in one of its files, and dvla::cuda. cmake links it
// to the examples where LibTorch has its CUDA libraries.
#include <dvla/memory/cuda.hpp>
