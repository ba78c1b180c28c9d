#pragma once
#include <pybind11/pybind11.h>

namespace modcut::bind {
void register_batch(pybind11::module_& m);
}
