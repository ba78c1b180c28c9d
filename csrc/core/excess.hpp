// How much cheaper than cut({a}) a small set around a could be cut off, at most. Statement and proof of what is
// computed here: docs/mathematics.md, section 3 ("Exceptions").
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/survey.hpp"

namespace modcut {

namespace detail {
#if defined(MODCUT_PLANT_LOOSE_CERTIFICATE)
inline constexpr double kPlantedLooseness = MODCUT_PLANT_LOOSE_CERTIFICATE;  // a bug for the tests to catch
#else
inline constexpr double kPlantedLooseness = 1;
#endif
}  // namespace detail

// The capacities between a set of vertices (one, or several merged) and all others.
class Row {
public:
    explicit Row(int64_t n) : w_(n, 0), in_(n, 0) {}

    void clear() {
        for (int32_t y : touched_) w_[y] = 0;
        for (int32_t x : members_) in_[x] = 0;
        touched_.clear(), members_.clear();
    }
    void add(const GraphView& g, int64_t x) {
        in_[x] = 1;
        members_.push_back(int32_t(x));
        for_each_entry(g, x, [&](int64_t y, auto w) {
            if (!(w > 0)) return;
            if (w_[y] == 0) touched_.push_back(int32_t(y));
            w_[y] += double(w);
        });
    }
    double operator[](int64_t y) const { return w_[y]; }
    bool has(int64_t x) const { return in_[x]; }
    const std::vector<int32_t>& members() const { return members_; }
    // Neighbours, members among them.
    const std::vector<int32_t>& touched() const { return touched_; }

private:
    std::vector<double> w_;
    std::vector<uint8_t> in_;
    std::vector<int32_t> touched_, members_;
};

class Excess {
public:
    Excess(const GraphView& g, const Degrees& deg, const Survey& s) : g_(g), deg_(deg), s_(s) {
        if (s.cells.count) cell_.resize(g.n);
        for (int32_t c = 0; c < s.cells.count; ++c)
            for (int64_t x = s.cells.begin[c]; x < s.cells.begin[c + 1]; ++x) cell_[x] = c;
        loop_.assign(s.cells.count, 0);
        for (const CellPair& p : s.cells.pairs)
            if (p.a == p.b) loop_[p.a] = 1;
        mark_.assign(g.n, 0);
    }

    // An upper bound on 2 w(a, A) - cut(A) over all A without a and `other` whose volume is below the limit that theta
    // stands for: cut(A) >= 2 theta vol(A) is all that is used of the graph's spectrum. 0: none is cheaper. `free`:
    // stop looking for less than this.
    double operator()(const Row& row, int64_t other, double theta, double free = 0) {
        theta *= (1 - 1e-9) / detail::kPlantedLooseness;
        std::vector<Item>& items = items_;
        items.clear();
        const double floor = theta / 4;
        double plain = 0;
        for (int32_t u : row.touched()) {
            if (u == other || row.has(u)) continue;
            const double w = row[u] * (1 + 1e-9), d = deg_.d[u];
            if (w <= floor * d) continue;
            items.push_back({u, w, d, 0});
            plain += 2 * std::max(0.0, w - theta * d);
        }
        plain *= 1 + 1e-9;
        if (plain <= free) return plain;
        double best = plain;
        for (const double part : {0.75, 0.5, 0.25}) {
            best = std::min(best, with_exceptions(theta, part * theta));
            if (best <= free) break;
        }
        return best;
    }

private:
    struct Item {
        int32_t u;
        double w, d;
        double sigma;  // capacity to the others chosen; then rho^2 / (what is left of d)
    };

    double with_exceptions(double theta, double theta0) {
        std::vector<Item>& b = chosen_;
        b.clear();
        for (const Item& i : items_)
            if (i.w > theta0 * i.d) b.push_back(i);
        if (b.empty()) return 0;
        if (!inner_capacities(b)) return std::numeric_limits<double>::infinity();
        // sigma is the capacity left at u; its load is rho(u)^2 / sigma. Infinite where nothing is left.
        double pay = 0, load = 0;
        for (Item& i : b) {
            const double left = i.d * (1 - 1e-9) - 2 * i.w - i.sigma;
            i.sigma = left > 0 ? s_.squares[i.u] * (1 + 1e-9) / left : std::numeric_limits<double>::infinity();
        }
        std::sort(b.begin(), b.end(),
                  [](const Item& x, const Item& y) { return x.sigma < y.sigma || (x.sigma == y.sigma && x.u < y.u); });
        const double room = 2 * (theta - theta0);
        for (const Item& i : b) {  // the rest is paid for
            if (load <= room && load + i.sigma <= room)
                load += i.sigma;
            else
                pay += 2 * (i.w - theta0 * i.d), load = std::max(load, room);
        }
        return pay * (1 + 1e-9);
    }

    // sigma = sum of the capacities between u and the others chosen; false where that is too dear to find.
    bool inner_capacities(std::vector<Item>& b) {
        for (Item& i : b) i.sigma = 0;
        if (!cell_.empty() && !loop_[cell_[b[0].u]] &&
            std::all_of(b.begin(), b.end(), [&](const Item& i) { return cell_[i.u] == cell_[b[0].u]; }))
            return true;
        if (!cell_.empty() && !joined(b)) return true;
        if (b.size() > 64) return false;
        for (const Item& i : b) mark_[i.u] = 1;
        for (Item& i : b)
            for_each_entry(g_, i.u, [&](int64_t y, auto w) {
                if (mark_[y]) i.sigma += double(w);
            });
        for (const Item& i : b) mark_[i.u] = 0;
        return true;
    }

    // Are any two of the cells that hold the chosen vertices joined?
    bool joined(const std::vector<Item>& b) {
        std::vector<uint8_t> used(s_.cells.count, 0);
        for (const Item& i : b) used[cell_[i.u]] = 1;
        for (const CellPair& p : s_.cells.pairs)
            if (used[p.a] && used[p.b]) return true;
        return false;
    }

    const GraphView& g_;
    const Degrees& deg_;
    const Survey& s_;
    std::vector<int32_t> cell_;
    std::vector<uint8_t> loop_, mark_;
    std::vector<Item> items_, chosen_;
};

}  // namespace modcut
