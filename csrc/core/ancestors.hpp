// A rooted tree given by parents: its preorder, and lowest common ancestors in constant time after O(n) work (Schieber
// and Vishkin 1988).
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace modcut {

class Ancestors {
public:
    // parent[v] < 0 at the one root.
    template <class Parent>
    Ancestors(int64_t n, const Parent* parent)
        : order_(n), at_(n), end_(n), up_(n), inlabel_(n), ascendant_(n), head_(n + 1) {
        std::vector<int32_t> first(n + 1, 0), below(n > 0 ? n - 1 : 0);
        int64_t root = -1;
        for (int64_t v = 0; v < n; ++v)
            if (parent[v] >= 0)
                ++first[parent[v] + 1];
            else
                root = v;
        for (int64_t v = 0; v < n; ++v) first[v + 1] += first[v];
        {
            std::vector<int32_t> next(first.begin(), first.end() - 1);
            for (int64_t v = 0; v < n; ++v)
                if (parent[v] >= 0) below[next[parent[v]]++] = int32_t(v);
        }
        std::vector<int32_t> stack{int32_t(root)};
        int32_t count = 0;
        while (!stack.empty()) {
            const int32_t v = stack.back();
            stack.pop_back();
            at_[v] = count, order_[count] = v;
            up_[count] = parent[v] < 0 ? -1 : at_[parent[v]];
            ++count;
            for (int32_t i = first[v + 1]; i-- > first[v];) stack.push_back(below[i]);
        }
        reached_ = count;
        if (count < n) return;  // cycles
        // Everything below is by preorder number; subtrees are ranges [p, end_[p]).
        for (int32_t p = 0; p < n; ++p) end_[p] = p + 1;
        for (int32_t p = int32_t(n) - 1; p > 0; --p) end_[up_[p]] = std::max(end_[up_[p]], end_[p]);
        for (int32_t p = 0; p < n; ++p) {
            // The number in (p, end] (counted from 1) with the most trailing zeros.
            const uint32_t a = uint32_t(p), b = uint32_t(end_[p]);
            inlabel_[p] = b & ~(std::bit_floor(a ^ b) - 1);
            if (p == 0 || inlabel_[up_[p]] != inlabel_[p]) head_[inlabel_[p]] = p;  // the top of its path
            ascendant_[p] = (p == 0 ? 0u : ascendant_[up_[p]]) | (inlabel_[p] & -inlabel_[p]);
        }
    }

    int64_t reached() const { return reached_; }           // fewer than n: some vertices are on cycles
    int32_t at(int64_t v) const { return at_[v]; }         // preorder number
    int32_t vertex(int64_t p) const { return order_[p]; }  // and back
    int32_t up(int64_t p) const { return up_[p]; }         // preorder number of the parent, -1 at the root
    int32_t end(int64_t p) const { return end_[p]; }       // one past the subtree
    bool below(int64_t p, int64_t q) const { return q >= p && q < end_[p]; }

    // Of two preorder numbers.
    int32_t meet(int32_t p, int32_t q) const {
        const uint32_t ip = inlabel_[p], iq = inlabel_[q];
        if (ip == iq) return std::min(p, q);
        const uint32_t i = std::bit_floor(ip ^ iq);
        uint32_t common = ascendant_[p] & ascendant_[q] & ~(i - 1);
        common &= -common;  // height of the path that holds the answer
        const int32_t x = climb(p, common), y = climb(q, common);
        return std::min(x, y);
    }

private:
    // The lowest ancestor of p on the path of height bit j.
    int32_t climb(int32_t p, uint32_t j) const {
        const uint32_t below_j = ascendant_[p] & (j - 1);
        if (below_j == 0) return p;
        const uint32_t k = std::bit_floor(below_j);
        return up_[head_[(inlabel_[p] & ~(k - 1)) | k]];
    }
    std::vector<int32_t> order_, at_, end_, up_;
    std::vector<uint32_t> inlabel_, ascendant_;
    std::vector<int32_t> head_;
    int64_t reached_ = 0;
};

}  // namespace modcut
