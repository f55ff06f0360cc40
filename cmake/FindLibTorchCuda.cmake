# The CUDA half of LibTorch, if programs can be linked with it: LibTorch::cuda. A wheel's libtorch_cuda.so needs NVIDIA's
# libraries beside it, which `pip install torch` fetches and scripts/setup, for its 4 GB, does not: so it is tried. Without them
# what needs CUDA is compiled, and not linked. Looks where LibTorch was found. The CUDA runtime that comes with it is the one that
# programs link: the toolkit's folder on a program's search path would offer an older NCCL, too.
find_package(LibTorch QUIET)
foreach(_path IN ITEMS LibTorchCuda_LIBRARY LibTorchCuda_C10_LIBRARY)  # found earlier, gone since
  if(${_path} AND NOT EXISTS "${${_path}}")
    unset(${_path} CACHE)
    unset(LibTorchCuda_LINKS CACHE)
  endif()
endforeach()
get_filename_component(_torch_root "${LibTorch_INCLUDE_DIR}" DIRECTORY)
find_library(LibTorchCuda_LIBRARY torch_cuda HINTS "${_torch_root}/lib" NO_DEFAULT_PATH)
find_library(LibTorchCuda_C10_LIBRARY c10_cuda HINTS "${_torch_root}/lib" NO_DEFAULT_PATH)
mark_as_advanced(LibTorchCuda_LIBRARY LibTorchCuda_C10_LIBRARY)
if(LibTorch_FOUND AND LibTorchCuda_LIBRARY AND LibTorchCuda_C10_LIBRARY)
  include(CheckCXXSourceCompiles)
  include(CMakePushCheckState)
  cmake_push_check_state(RESET)
  set(CMAKE_REQUIRED_LIBRARIES -Wl,--no-as-needed "${LibTorchCuda_LIBRARY}" "${LibTorchCuda_C10_LIBRARY}" LibTorch::LibTorch)
  check_cxx_source_compiles("namespace c10 { namespace cuda { signed char device_count() noexcept; } }
    int main() { return c10::cuda::device_count(); }" LibTorchCuda_LINKS)
  cmake_pop_check_state()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorchCuda REQUIRED_VARS LibTorchCuda_LIBRARY LibTorchCuda_C10_LIBRARY LibTorchCuda_LINKS)
if(LibTorchCuda_FOUND AND NOT TARGET LibTorch::cuda)
  add_library(LibTorch::c10_cuda SHARED IMPORTED)
  set_target_properties(LibTorch::c10_cuda PROPERTIES IMPORTED_LOCATION "${LibTorchCuda_C10_LIBRARY}")
  add_library(LibTorch::cuda SHARED IMPORTED)
  file(GLOB _cudart "${_torch_root}/../nvidia/*/lib/libcudart.so.*")
  if(_cudart)
    list(GET _cudart 0 _cudart)
    add_library(LibTorch::cudart SHARED IMPORTED)
    set_target_properties(LibTorch::cudart PROPERTIES IMPORTED_LOCATION "${_cudart}")
    set(_cudart LibTorch::cudart)
  else()
    set(_cudart CUDA::cudart)
  endif()
  file(GLOB _nccl "${_torch_root}/../nvidia/nccl/include")  # the NCCL that LibTorch was built with
  set_target_properties(LibTorch::cuda PROPERTIES
    IMPORTED_LOCATION "${LibTorchCuda_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${_nccl}"
    INTERFACE_LINK_LIBRARIES "LibTorch::c10_cuda;LibTorch::LibTorch;${_cudart}")
endif()
