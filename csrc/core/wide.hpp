// Sums and differences in about 106 bits: an unevaluated sum of two doubles (Dekker 1971, Knuth's TwoSum). Every int64
// of the engine (below 2^60) is held exactly.
#pragma once
#include <cmath>
#include <cstdint>

namespace modcut {

struct Wide {
    double hi = 0, lo = 0;  // |lo| <= half an ulp of hi

    static Wide of(double x) { return {x, 0}; }
    static Wide of(int64_t x) {
        const double h = double(x);
        return {h, double(x - int64_t(h))};
    }
    static Wide two_sum(double a, double b) {
        const double s = a + b, z = s - a;
        return {s, (a - (s - z)) + (b - z)};
    }
    // Relative error below 2^-104 of |a| + |b|.
    friend Wide operator+(const Wide& a, const Wide& b) {
        const Wide s = two_sum(a.hi, b.hi), t = two_sum(a.lo, b.lo);
        const Wide u = two_sum(s.hi, s.lo + t.hi);
        return two_sum(u.hi, u.lo + t.lo);
    }
    friend Wide operator-(const Wide& a, const Wide& b) { return a + Wide{-b.hi, -b.lo}; }
    Wide& operator+=(const Wide& o) { return *this = *this + o; }
    friend bool operator<(const Wide& a, const Wide& b) { return a.hi < b.hi || (a.hi == b.hi && a.lo < b.lo); }

    double value() const { return hi; }
    double down() const { return lo < 0 ? std::nextafter(hi, -HUGE_VAL) : hi; }
    int64_t integer() const { return int64_t(hi) + int64_t(lo); }
};

}  // namespace modcut
