# The headers of Gloo, as declarations for the Gloo inside LibTorch (Debian: libgloo-dev): GlooHeaders::GlooHeaders.
# Never links libgloo: it exports the same symbols as libtorch_cpu, and a call then runs the other one's code.
find_path(GlooHeaders_INCLUDE_DIR gloo/rendezvous/store.h)
mark_as_advanced(GlooHeaders_INCLUDE_DIR)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(GlooHeaders REQUIRED_VARS GlooHeaders_INCLUDE_DIR)
if(GlooHeaders_FOUND AND NOT TARGET GlooHeaders::GlooHeaders)
  add_library(GlooHeaders::GlooHeaders INTERFACE IMPORTED)
  set_target_properties(GlooHeaders::GlooHeaders PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${GlooHeaders_INCLUDE_DIR}" INTERFACE_COMPILE_DEFINITIONS USE_C10D_GLOO)
endif()
