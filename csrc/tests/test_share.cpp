// The fused modularity kernels against the formulas written as loops: all layouts, sizes, dtypes and thread counts.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "core/share.hpp"

using namespace modcut;

namespace {

int failures = 0;
void expect(bool ok, const char* what, int round) {
    if (!ok && ++failures < 10) std::printf("FAILED in round %d: %s\n", round, what);
}

template <class T, class A>
void rounds(int count, double tolerance) {
    std::mt19937 rng(7);
    auto below = [&](int n) { return int(rng() % unsigned(n)); };
    std::normal_distribution<double> normal;
    for (int round = 0; round < count; ++round) {
        const int rows = 1 + below(round % 3 ? 40 : 300), cols = 1 + below(round % 3 ? 90 : 9), k = 1 + below(5);
        const int taps = 1 + below(3), wide = cols * taps;
        const bool transposed = below(2), add_to = below(2);
        const int64_t stride = (transposed ? rows : wide) + below(3);
        std::vector<T> w(size_t(stride * (transposed ? wide : rows))), grad(w.size());
        for (auto& x : w) x = below(5) ? T(normal(rng)) : T(0);
        for (auto& x : grad) x = T(normal(rng));
        std::vector<A> scale(size_t(cols), 0), weight(size_t(rows), 0), leaks(size_t(rows), 9),
            strengths(size_t(rows), 9);
        std::vector<uint8_t> rl, cl;
        for (auto& x : scale) x = A(std::fabs(normal(rng)));
        for (auto& x : weight) x = A(std::fabs(normal(rng)));
        for (int i = 0; i < rows; ++i) rl.push_back(below(6) ? uint8_t(below(k)) : leak::kNoLabel);
        for (int j = 0; j < cols; ++j) cl.push_back(below(6) ? uint8_t(below(k)) : leak::kNoLabel);
        auto at = [&](int i, int j) { return size_t(transposed ? j * stride + i : i * stride + j); };
        const std::vector<T> before = grad, original = w;
        for (int threads : {1, 2}) {
            for (bool shrink : {false, true}) {
                w = original, grad = before;
                leak::Matrix<T, A> m;
                m.w = w.data(), m.grad = shrink ? nullptr : grad.data(), m.rows = rows, m.cols = wide;
                m.stride = stride, m.transposed = transposed, m.taps = taps, m.scale = scale.data();
                m.row_label = rl.data(), m.col_label = cl.data(), m.row_weight = weight.data();
                m.leak = leaks.data(), m.strength = strengths.data();
                std::vector<leak::Matrix<T, A>> list{m};
                leak::run(list, k, shrink, add_to, threads);
                for (int i = 0; i < rows; ++i) {
                    double r = 0, x = 0;
                    for (int j = 0; j < wide; ++j) {
                        if (cl[size_t(j / taps)] == leak::kNoLabel) continue;
                        const double a = std::fabs(double(original[at(i, j)])) * double(scale[size_t(j / taps)]);
                        r += a, x += cl[size_t(j / taps)] == rl[size_t(i)] ? 0 : a;
                    }
                    const bool live = rl[size_t(i)] != leak::kNoLabel && r > 0;
                    const double l = live ? x / r : 0;
                    expect(std::fabs(double(leaks[size_t(i)]) - l) < tolerance, "leak", round);
                    expect(std::fabs(double(strengths[size_t(i)]) - (live ? r : 0)) < tolerance * (1 + r), "strength",
                           round);
                    expect(live && x == 0 ? leaks[size_t(i)] == 0 : true, "exactly zero where nothing crosses", round);
                    for (int j = 0; j < wide; ++j) {
                        const double v = double(original[at(i, j)]), a = double(weight[size_t(i)]);
                        const bool none = cl[size_t(j / taps)] == leak::kNoLabel;
                        const double s = none ? 0 : double(scale[size_t(j / taps)]);
                        const double cross = !none && cl[size_t(j / taps)] != rl[size_t(i)];
                        if (shrink) {
                            const double left = live ? std::fmax(std::fabs(v) - a * s * cross / r, 0) : std::fabs(v);
                            expect(std::fabs(double(w[at(i, j)]) - std::copysign(left, v)) < tolerance, "shrunk",
                                   round);
                        } else {
                            const double g = live && v != 0 ? std::copysign(1, v) * s * a / r * (cross - l) : 0;
                            const double want = g + (add_to ? double(before[at(i, j)]) : 0);
                            expect(std::fabs(double(grad[at(i, j)]) - want) < tolerance * (1 + std::fabs(want)),
                                   "gradient", round);
                        }
                    }
                }
            }
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const int count = argc > 1 ? std::atoi(argv[1]) : 400;
    rounds<float, float>(count, 2e-4);
    rounds<double, double>(count, 1e-11);
    if (failures) std::printf("%d failures\n", failures);
    return failures != 0;
}
