# LibTorch for CPU programs, out of the PyPI wheel `torch` or any folder with include/ and lib/: LibTorch::LibTorch.
# Links torch_cpu and c10 alone. The wheel's own TorchConfig links libtorch.so, which pulls in libtorch_cuda.so and every
# NVIDIA library; a program on CPUs wants none of them.
# Looks in DVLA_TORCH_ROOT (a CMake or an environment variable) and then nowhere else; without it where dvla was installed with it
# (DVLA_INSTALLED_TORCH_ROOT, set by the installed package), in the .venv of this source tree, and in the site-packages of the
# python3 on PATH.
set(DVLA_TORCH_ROOT "" CACHE PATH "Folder of LibTorch, with include/ and lib/")
set(_torch_roots ${DVLA_TORCH_ROOT})
if(NOT _torch_roots)
  set(_torch_roots $ENV{DVLA_TORCH_ROOT})
endif()
set(_torch_given "${_torch_roots}")
if(NOT LibTorch_INCLUDE_DIR OR NOT EXISTS "${LibTorch_INCLUDE_DIR}" OR NOT "${_torch_given}" STREQUAL "${LibTorch_SEARCHED}")
  foreach(_path IN ITEMS LibTorch_INCLUDE_DIR LibTorch_LIBRARY LibTorch_C10_LIBRARY  # gone since, or for another root
                         LibTorchCuda_LIBRARY LibTorchCuda_C10_LIBRARY LibTorchCuda_LINKS)
    unset(${_path} CACHE)
  endforeach()
endif()
set(LibTorch_SEARCHED "${_torch_given}" CACHE INTERNAL "The root that the paths below were searched for")
if(NOT _torch_given)
  file(GLOB _torch_roots "${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch" "${CMAKE_CURRENT_LIST_DIR}/../.venv/lib/python3*/site-packages/torch")
  list(PREPEND _torch_roots ${DVLA_INSTALLED_TORCH_ROOT})
endif()
find_path(LibTorch_INCLUDE_DIR torch/csrc/api/include/torch/torch.h HINTS ${_torch_roots} PATH_SUFFIXES include NO_DEFAULT_PATH)
if(NOT LibTorch_INCLUDE_DIR AND NOT _torch_given)
  execute_process(
    COMMAND python3 -c "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE _torch_python OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(_torch_python)
    find_path(LibTorch_INCLUDE_DIR torch/csrc/api/include/torch/torch.h HINTS "${_torch_python}" PATH_SUFFIXES include NO_DEFAULT_PATH)
  endif()
endif()
get_filename_component(_torch_root "${LibTorch_INCLUDE_DIR}" DIRECTORY)
find_library(LibTorch_LIBRARY torch_cpu HINTS "${_torch_root}/lib" NO_DEFAULT_PATH)
find_library(LibTorch_C10_LIBRARY c10 HINTS "${_torch_root}/lib" NO_DEFAULT_PATH)
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_LIBRARY LibTorch_C10_LIBRARY)

if(LibTorch_INCLUDE_DIR AND EXISTS "${LibTorch_INCLUDE_DIR}/torch/version.h")
  file(STRINGS "${LibTorch_INCLUDE_DIR}/torch/version.h" _torch_version REGEX "define TORCH_VERSION ")
  string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" LibTorch_VERSION "${_torch_version}")
endif()
set(_torch_reason "LibTorch is in none of the places where it is looked for")
if(_torch_given)
  set(_torch_reason "DVLA_TORCH_ROOT is ${_torch_given}, and there is no LibTorch in it")
elseif(DVLA_INSTALLED_TORCH_ROOT)
  set(_torch_reason "LibTorch is no longer in ${DVLA_INSTALLED_TORCH_ROOT}, where dvla was installed with it")
endif()
string(APPEND _torch_reason ": give -DDVLA_TORCH_ROOT=<folder with include/ and lib/, as site-packages/torch of the PyPI wheel>")
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "${_torch_reason}")

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  add_library(LibTorch::c10 SHARED IMPORTED)
  set_target_properties(LibTorch::c10 PROPERTIES IMPORTED_LOCATION "${LibTorch_C10_LIBRARY}")
  add_library(LibTorch::LibTorch SHARED IMPORTED)
  set_target_properties(LibTorch::LibTorch PROPERTIES
    IMPORTED_LOCATION "${LibTorch_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${LibTorch_INCLUDE_DIR};${LibTorch_INCLUDE_DIR}/torch/csrc/api/include"
    INTERFACE_LINK_LIBRARIES LibTorch::c10)
endif()
