// Trees of small graphs: the same bits for every team, tile and number of threads; minimum cuts, against all subsets
// and against the engine of core/cut_tree.hpp, which shares no flow with them.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/batch.hpp"
#include "cpu/cut.hpp"

using namespace modcut;

namespace {

int failures = 0;
void claim(bool holds, const char* what, const std::string& where) {
    if (!holds && ++failures <= 20) std::fprintf(stderr, "FAILED: %s (%s)\n", what, where.c_str());
}

std::mt19937_64 rng(1);
double uniform() { return std::uniform_real_distribution<double>(0, 1)(rng); }

// A symmetric matrix of one of several kinds, with a loop here and there, which must not count.
std::vector<double> draw(int64_t n, int kind) {
    std::vector<double> w(n * n, 0);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j <= i; ++j) {
            double c = 0;
            switch (kind) {
                case 0:
                    c = uniform();
                    break;  // dense
                case 1:
                    c = uniform() < 0.15 ? uniform() : 0;
                    break;  // sparse, often apart
                case 2:
                    c = i * 3 / n == j * 3 / n ? uniform() : 0.02 * uniform();
                    break;  // planted modules
                case 3:
                    c = i - j == 1 || i - j == n - 1 ? 1 + uniform() : 0;
                    break;  // a cycle
                case 4:
                    c = std::abs(i * 4 / n - j * 4 / n) == 1 ? uniform() : 0;
                    break;  // layers
                case 5:
                    c = double(int(3 * uniform()));
                    break;  // ties
                default:
                    c = std::exp(6 * uniform() - 3);  // several scales
            }
            w[i * n + j] = w[j * n + i] = c;
        }
    return w;
}

template <class W>
std::vector<W> as(const std::vector<double>& w, double factor) {
    std::vector<W> out;
    for (double x : w) out.push_back(std::is_floating_point_v<W> ? W(x) : W(std::floor(x * factor)));
    return out;
}

struct Trees {
    std::vector<int64_t> parent, status;
    std::vector<double> weight, lower;
    Trees(int64_t b, int64_t n) : parent(b * n, -7), status(4 * b, -7), weight(b * n, -7), lower(b * n, -7) {}
    bool same(const Trees& o) const {
        return parent == o.parent && status == o.status && weight == o.weight && lower == o.lower;
    }
};

template <class W>
Trees batch(const std::vector<W>& w, int64_t b, int64_t n, int threads) {
    Trees t(b, n);
    Poll poll;
    cpu::gomory_hu_batch(w.data(), b, n, n * n, n, {t.parent.data(), t.weight.data(), t.lower.data(), t.status.data()},
                         threads, poll);
    return t;
}

// The shape of a team on a GPU: one vertex at a time, odd strides.
template <class Team>
struct Narrow : Team {
    static constexpr int kTile = 1;
    explicit Narrow(const Team& team) : Team(team) {}
};

template <class W>
Trees narrow(const std::vector<W>& w, int64_t n, int threads) {
    Trees t(1, n);
    using M = small::Memory<small::Residual<W>>;
    const int64_t stride = n | 1;
    std::vector<int64_t> large(M::large(n, stride) / 8), little(M::little(n, stride) / 8);
    const M memory(large.data(), little.data(), n, stride);
    run_team(threads, [&](auto& given) {
        Narrow<std::remove_reference_t<decltype(given)>> team(given);
        small::cut_tree(team, w.data(), n, n, memory,
                        {t.parent.data(), t.weight.data(), t.lower.data(), t.status.data()}, [] { return false; });
    });
    return t;
}

double path_minimum(const Trees& t, int64_t u, int64_t v, const std::vector<double>& value) {
    const auto depth = [&](int64_t x) {
        int64_t d = 0;
        for (; t.parent[x] >= 0; x = t.parent[x]) ++d;
        return d;
    };
    double low = INFINITY;
    for (int64_t a = depth(u), b = depth(v); u != v;) {
        int64_t& x = a >= b ? u : v;
        (a >= b ? a : b) -= 1;
        low = std::min(low, value[x]), x = t.parent[x];
    }
    return low;
}

template <class W>
void agrees_with_the_engine(const std::vector<W>& w, int64_t n, const Trees& t, const std::string& where) {
    GraphView g;
    g.n = n, g.integral = std::is_integral_v<W>, g.single = sizeof(W) == 4;
    std::vector<int64_t> wide(w.begin(), w.end());
    BlockView b;
    b.rows = b.cols = b.stride = n, b.symmetric = true;
    b.type = g.integral ? Scalar::i64 : sizeof(W) == 4 ? Scalar::f32 : Scalar::f64;
    b.data = g.integral ? static_cast<const void*>(wide.data()) : w.data();
    if (n > 0) g.blocks.push_back(b);
    std::vector<int64_t> parent(n);
    std::vector<double> weight(n), lower(n);
    std::vector<uint8_t> proof(n);
    Poll poll;
    cpu::gomory_hu(g, {parent.data(), weight.data(), lower.data(), proof.data()}, {}, poll);
    Trees engine(1, n);
    engine.parent = parent, engine.weight = weight;
    const double tolerance = std::is_integral_v<W> ? 0 : sizeof(W) == 4 ? 3e-6 : 1e-11;
    for (int64_t u = 0; u < n; ++u)
        for (int64_t v = 0; v < u; ++v) {
            const double ours = path_minimum(t, u, v, t.weight), theirs = path_minimum(engine, u, v, weight);
            claim(std::abs(ours - theirs) <= tolerance * theirs, "every pair has the engine's minimum cut",
                  where + ", pair " + std::to_string(u) + " " + std::to_string(v) + ": " + std::to_string(ours) +
                      " for " + std::to_string(theirs));
        }
}

void agrees_with_all_subsets(const std::vector<int64_t>& w, int64_t n, const Trees& t, const std::string& where) {
    std::vector<double> least(n * n, INFINITY);
    for (int set = 1; set < (1 << n) - 1; ++set) {
        double cut = 0;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < n; ++j)
                if ((set >> i & 1) && !(set >> j & 1)) cut += double(w[i * n + j]);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < n; ++j)
                if ((set >> i & 1) != (set >> j & 1)) least[i * n + j] = std::min(least[i * n + j], cut);
    }
    for (int64_t u = 0; u < n; ++u)
        for (int64_t v = 0; v < u; ++v)
            claim(path_minimum(t, u, v, t.weight) == least[u * n + v], "every pair has the least of all cuts", where);
    // A tree of values alone is not a cut tree: what hangs below an edge must cut exactly its weight.
    for (int64_t v = 0; v < n; ++v) {
        if (t.parent[v] < 0) continue;
        std::vector<char> below(n);
        for (int64_t x = 0; x < n; ++x)
            for (int64_t up = x; up >= 0; up = t.parent[up]) below[x] |= up == v;
        double cut = 0;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < n; ++j)
                if (below[i] && !below[j]) cut += double(w[i * n + j]);
        claim(cut == t.weight[v] && cut == t.lower[v], "every edge is the cut it induces", where);
    }
}

template <class W>
void one_graph(int64_t n, int kind, double factor, const char* type, bool deep) {
    const std::vector<W> w = as<W>(draw(n, kind), factor);
    const std::string where = std::string(type) + ", n " + std::to_string(n) + ", kind " + std::to_string(kind);
    const Trees t = batch(w, 1, n, 1);
    claim(t.status[0] == small::kDone, "the tree is made", where);
    for (int threads = 1; threads <= 4; ++threads) {
        claim(batch(w, 1, n, threads).same(t), "teams do not change bits", where);
        if (deep) claim(narrow(w, n, threads).same(t), "tiles do not change bits", where);
    }
    for (int64_t v = 0; v < n; ++v) claim(t.lower[v] <= t.weight[v], "bounds are bounds", where);
    agrees_with_the_engine(w, n, t, where);
    if constexpr (std::is_same_v<W, int64_t>)
        if (n <= 9 && n > 0) agrees_with_all_subsets(w, n, t, where);
}

void threads_over_graphs_do_not_change_bits() {
    const int64_t b = 7, n = 19;
    std::vector<float> w;
    for (int64_t i = 0; i < b; ++i)
        for (double x : draw(n, int(i))) w.push_back(float(x));
    const Trees t = batch(w, b, n, 1);
    for (int threads : {2, 3, 4, 9, 16}) claim(batch(w, b, n, threads).same(t), "threads do not change bits", "batch");
    for (int64_t i = 0; i < b; ++i) {
        const Trees alone = batch(std::vector<float>(w.begin() + i * n * n, w.begin() + (i + 1) * n * n), 1, n, 1);
        claim(std::equal(alone.weight.begin(), alone.weight.end(), t.weight.begin() + i * n), "a graph is alone", "b");
    }
}

template <class W>
void refused(int64_t code, int64_t i, int64_t j, W value, W back) {
    const int64_t n = 11;
    std::vector<W> w = as<W>(draw(n, 0), 1000);
    w[i * n + j] = value, w[j * n + i] = back;
    for (int threads = 1; threads <= 3; ++threads) {
        const Trees t = batch(w, 1, n, threads);
        claim(t.status[0] == code, "bad input is told", std::to_string(code) + " got " + std::to_string(t.status[0]));
        if (code != small::kTooLarge)
            claim((t.status[1] == i && t.status[2] == j), "bad input is placed", std::to_string(code));
    }
}

void bad_input_is_told() {
    const double nan = std::numeric_limits<double>::quiet_NaN(), inf = INFINITY;
    refused<double>(small::kNotANumber, 3, 7, nan, nan);
    refused<double>(small::kNotANumber, 7, 7, nan, nan);
    refused<float>(small::kInfinite, 2, 5, float(inf), float(inf));
    refused<float>(small::kNegative, 2, 5, -1.0f, -1.0f);
    refused<int64_t>(small::kNegative, 0, 1, -1, -1);
    refused<int32_t>(small::kAsymmetric, 4, 9, 5, 6);
    refused<double>(small::kAsymmetric, 4, 9, 1.0, 1.0 + 1e-8);
    refused<int32_t>(small::kTooLarge, 4, 9, 1 << 30, 1 << 30);
    refused<int64_t>(small::kTooLarge, 4, 9, int64_t(1) << 53, int64_t(1) << 53);
    refused<double>(small::kTooLarge, 4, 9, 1.7e308, 1.7e308);
}

void rounded_entries_are_averaged() {
    const int64_t n = 11;
    std::vector<double> w = draw(n, 0);
    w[3 * n + 4] *= 1 + 1e-12;
    const Trees a = batch(w, 1, n, 2);
    w[3 * n + 4] = w[4 * n + 3] = w[3 * n + 4] / 2 + w[4 * n + 3] / 2;
    claim(a.same(batch(w, 1, n, 1)), "entries that rounding made differ count as their mean", "");
}

void a_stop_ends_all_threads() {
    struct Once final : Poll {
        int left;
        explicit Once(int k) : left(k) {}
        void check() override {
            if (left-- == 0) throw Interrupted{};
        }
    };
    const std::vector<float> w = as<float>(draw(40, 0), 1);
    for (int threads : {1, 3})
        for (int after = 0; after < 20; ++after) {
            Trees t(1, 40);
            Once poll(after);
            bool told = false;
            try {
                cpu::gomory_hu_batch(w.data(), 1, 40, 1600, 40,
                                     {t.parent.data(), t.weight.data(), t.lower.data(), t.status.data()}, threads,
                                     poll);
            } catch (const Interrupted&) {
                told = true;
            }
            claim(told, "an interruption reaches the caller", std::to_string(after));
        }
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
    threads_over_graphs_do_not_change_bits();
    bad_input_is_told();
    rounded_entries_are_averaged();
    a_stop_ends_all_threads();
    for (int round = 0; round < rounds; ++round)
        for (int kind = 0; kind < 7; ++kind) {
            const int64_t n = int64_t(uniform() * 9) + 1, large = 10 + int64_t(uniform() * 40);
            const double wide = double(int64_t(1) << (10 + 3 * (round % 10)));
            one_graph<int64_t>(n, kind, 1 + 40 * uniform(), "int64", true);
            one_graph<int64_t>(large, kind, wide, "int64", round % 4 == 0);
            one_graph<int32_t>(large, kind, 1000, "int32", round % 4 == 0);
            one_graph<float>(n, kind, 0, "float32", true);
            one_graph<float>(large, kind, 0, "float32", round % 4 == 0);
            one_graph<double>(large, kind, 0, "float64", round % 4 == 0);
        }
    std::printf(failures ? "%d FAILED\n" : "all claims hold\n", failures);
    return failures ? 1 : 0;
}
