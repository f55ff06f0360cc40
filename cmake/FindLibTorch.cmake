# LibTorch for CPU programs, out of the PyPI wheel `torch` or any folder with include/ and lib/: LibTorch::LibTorch.
# Links torch_cpu and c10 alone. The wheel's own TorchConfig links libtorch.so, which pulls in libtorch_cuda.so and every
# NVIDIA library; a program on CPUs wants none of them.
# Looks in DVLA_TORCH_ROOT, the .venv of this source tree, and the site-packages of the python3 on PATH.
set(DVLA_TORCH_ROOT "" CACHE PATH "Folder of LibTorch, with include/ and lib/")
set(_torch_roots "${DVLA_TORCH_ROOT}" "$ENV{DVLA_TORCH_ROOT}")
file(GLOB _torch_venv "${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch" "${CMAKE_CURRENT_LIST_DIR}/../.venv/lib/python3*/site-packages/torch")
list(APPEND _torch_roots ${_torch_venv})
foreach(_path IN ITEMS LibTorch_INCLUDE_DIR LibTorch_LIBRARY LibTorch_C10_LIBRARY)  # found earlier, gone since
  if(${_path} AND NOT EXISTS "${${_path}}")
    unset(${_path} CACHE)
  endif()
endforeach()
find_path(LibTorch_INCLUDE_DIR torch/csrc/api/include/torch/torch.h HINTS ${_torch_roots} PATH_SUFFIXES include NO_DEFAULT_PATH)
if(NOT LibTorch_INCLUDE_DIR)
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
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch REQUIRED_VARS LibTorch_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR VERSION_VAR LibTorch_VERSION)

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  add_library(LibTorch::c10 SHARED IMPORTED)
  set_target_properties(LibTorch::c10 PROPERTIES IMPORTED_LOCATION "${LibTorch_C10_LIBRARY}")
  add_library(LibTorch::LibTorch SHARED IMPORTED)
  set_target_properties(LibTorch::LibTorch PROPERTIES
    IMPORTED_LOCATION "${LibTorch_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${LibTorch_INCLUDE_DIR};${LibTorch_INCLUDE_DIR}/torch/csrc/api/include"
    INTERFACE_LINK_LIBRARIES LibTorch::c10)
endif()
