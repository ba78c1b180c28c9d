// What the tests compare with: slow, plain, and sharing no code with the core.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

namespace modcut::reference {

using Matrix = std::vector<std::vector<double>>;

// Second eigenvalue of the normalised Laplacian by Jacobi rotations.
inline double second_eigenvalue(const Matrix& w) {
    const size_t n = w.size();
    Matrix a(n, std::vector<double>(n));
    std::vector<double> d(n, 0);
    for (size_t i = 0; i < n; ++i)
        for (double x : w[i]) d[i] += x;
    for (size_t i = 0; i < n; ++i)
        for (size_t j = 0; j < n; ++j) a[i][j] = (i == j) - w[i][j] / std::sqrt(d[i] * d[j]);
    for (int sweep = 0; sweep < 60; ++sweep)
        for (size_t p = 0; p < n; ++p)
            for (size_t q = p + 1; q < n; ++q) {
                if (std::abs(a[p][q]) < 1e-15) continue;
                const double th = 0.5 * std::atan2(2 * a[p][q], a[q][q] - a[p][p]), c = std::cos(th), s = std::sin(th);
                for (size_t k = 0; k < n; ++k) {
                    const double x = a[k][p], y = a[k][q];
                    a[k][p] = c * x - s * y, a[k][q] = s * x + c * y;
                }
                for (size_t k = 0; k < n; ++k) {
                    const double x = a[p][k], y = a[q][k];
                    a[p][k] = c * x - s * y, a[q][k] = s * x + c * y;
                }
            }
    std::vector<double> ev;
    for (size_t i = 0; i < n; ++i) ev.push_back(a[i][i]);
    std::sort(ev.begin(), ev.end());
    return ev[1];
}

}  // namespace modcut::reference
