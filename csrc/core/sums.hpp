// Compensated sums: the error of a sum of n terms does not grow with n (Neumaier's form of Kahan summation, TwoSum
// inside).
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/team.hpp"

namespace modcut {

struct Sum {
    double hi = 0, lo = 0;
    MODCUT_FN void add(double x) {
        double t = hi + x, z = t - hi;
        lo += (hi - (t - z)) + (x - z);
        hi = t;
    }
    MODCUT_FN void add(const Sum& o) {
        add(o.hi);
        lo += o.lo;
    }
    MODCUT_FN double value() const { return hi + lo; }
};

// Sum of n non-negative entries; eight independent lanes so that the compiler can use vectors.
template <class T>
Sum row_sum(const T* p, int64_t n) {
    constexpr int L = 8;
    double hi[L] = {}, lo[L] = {};
    int64_t i = 0;
    for (; i + L <= n; i += L)
        for (int k = 0; k < L; ++k) {
            double x = double(p[i + k]), t = hi[k] + x, z = t - hi[k];
            lo[k] += (hi[k] - (t - z)) + (x - z);
            hi[k] = t;
        }
    Sum s;
    for (int k = 0; k < L; ++k) s.add(Sum{hi[k], lo[k]});
    for (; i < n; ++i) s.add(double(p[i]));
    return s;
}

// 2^e without the underflow of a single factor: apply as x * lo * hi.
struct PowerOfTwo {
    double a = 1, b = 1;
    MODCUT_FN explicit PowerOfTwo(int e = 0) : a(std::ldexp(1.0, e / 2)), b(std::ldexp(1.0, e - e / 2)) {}
    MODCUT_FN double operator()(double x) const { return x * a * b; }
};

inline double below(double x) { return x > 0 ? std::nextafter(x, 0.0) : 0.0; }

}  // namespace modcut
