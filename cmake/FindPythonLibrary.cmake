# CPython to be embedded: PythonLibrary::PythonLibrary, the headers and the shared library of the interpreter that has the simulators,
# as its own sysconfig says: DVLA_PYTHON, or where dvla was installed with it (DVLA_INSTALLED_PYTHON), or that of the first of
# .venv-maniskill, .venv-gymnasium and .venv in this source tree, or python3.
set(DVLA_PYTHON "" CACHE STRING "Interpreter, a path or a name, whose library dvla::python links")
set(PythonLibrary_ASKED "${DVLA_PYTHON}")
foreach(_python IN ITEMS "${DVLA_INSTALLED_PYTHON}" "${CMAKE_SOURCE_DIR}/.venv-maniskill/bin/python"
                         "${CMAKE_SOURCE_DIR}/.venv-gymnasium/bin/python" "${CMAKE_SOURCE_DIR}/.venv/bin/python")
  if(NOT PythonLibrary_ASKED AND EXISTS "${_python}")
    set(PythonLibrary_ASKED "${_python}")
  endif()
endforeach()
if(NOT PythonLibrary_ASKED)
  set(PythonLibrary_ASKED python3)
endif()
set(PythonLibrary_REASON "${PythonLibrary_ASKED} has no headers and shared library beside it (Debian: python3-dev, pyenv: --enable-shared), or give -DDVLA_PYTHON=<interpreter>")
execute_process(COMMAND "${PythonLibrary_ASKED}" -c "
import sysconfig
say = sysconfig.get_config_var
print(sysconfig.get_path('include'), say('LIBDIR'), say('LIBDIR') + '/' + (say('MULTIARCH') or ''), say('LDVERSION'), sep=';')"
  OUTPUT_VARIABLE _python_said OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
unset(PythonLibrary_INCLUDE_DIR CACHE)  # asked each time: the interpreter at a path may be another one
unset(PythonLibrary_LIBRARY CACHE)
list(LENGTH _python_said _python_count)
if(_python_count EQUAL 4)
  list(POP_FRONT _python_said _python_include)
  list(POP_BACK _python_said _python_version)
  find_path(PythonLibrary_INCLUDE_DIR Python.h HINTS "${_python_include}" NO_DEFAULT_PATH)
  find_library(PythonLibrary_LIBRARY NAMES "libpython${_python_version}.so" "libpython${_python_version}.so.1.0" HINTS ${_python_said} NO_DEFAULT_PATH)
endif()
mark_as_advanced(PythonLibrary_INCLUDE_DIR PythonLibrary_LIBRARY)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(PythonLibrary REQUIRED_VARS PythonLibrary_LIBRARY PythonLibrary_INCLUDE_DIR REASON_FAILURE_MESSAGE "${PythonLibrary_REASON}")
if(PythonLibrary_FOUND AND NOT TARGET PythonLibrary::PythonLibrary)
  add_library(PythonLibrary::PythonLibrary UNKNOWN IMPORTED)
  set_target_properties(PythonLibrary::PythonLibrary PROPERTIES
    IMPORTED_LOCATION "${PythonLibrary_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${PythonLibrary_INCLUDE_DIR}")
endif()
