// Linked into the examples whose environments are Python's, where its library was found: --embedded true steps them in the
// example's own process. A program of your own includes this line anywhere, and links dvla::python.
#include <dvla/environment/python/embedded.hpp>
