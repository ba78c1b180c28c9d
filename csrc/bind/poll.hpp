#pragma once
#include <pybind11/pybind11.h>

#include <chrono>

#include "core/views.hpp"

namespace modcut::bind {

// Lets Ctrl-C end a long call: every 50 ms the GIL is taken for a moment and Python's signal handlers run.
class SignalPoll final : public Poll {
public:
    void check() override {
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ < std::chrono::milliseconds(50)) return;
        last_ = now;
        pybind11::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    }

private:
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace modcut::bind
