#pragma once
#include <pybind11/pybind11.h>

namespace modcut::bind {
void register_share(pybind11::module_& m);
}
