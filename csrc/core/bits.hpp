// Sets of vertices as bits: a scan of a row asks for 64 targets at once, and those already settled cost nothing.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace modcut {

inline bool has(const uint64_t* bits, int64_t x) { return bits[x >> 6] >> (x & 63) & 1; }

// f(x) for the members in [from, to), in order, until one says true; returns whether one did.
template <class F>
bool any_of(const uint64_t* bits, int64_t from, int64_t to, F&& f) {
    if (from >= to) return false;
    for (int64_t word = from >> 6; word <= (to - 1) >> 6; ++word) {
        uint64_t w = bits[word];
        if (word == from >> 6) w &= ~uint64_t(0) << (from & 63);
        if (word == (to - 1) >> 6) w &= ~uint64_t(0) >> (63 - ((to - 1) & 63));
        for (; w; w &= w - 1)
            if (f((word << 6) + std::countr_zero(w))) return true;
    }
    return false;
}

class Bits {
public:
    explicit Bits(int64_t n) : words_((n + 63) / 64) {}
    void fill() { std::fill(words_.begin(), words_.end(), ~uint64_t(0)); }
    void drop(int64_t x) { words_[x >> 6] &= ~(uint64_t(1) << (x & 63)); }
    const uint64_t* data() const { return words_.data(); }

private:
    std::vector<uint64_t> words_;
};

// The vertices of each level. Levels that are equal modulo 64 share a row of bits, so 8n bytes hold any number of them:
// whoever asks for a row compares the level as well.
class Levels {
public:
    explicit Levels(int64_t n) : words_((n + 63) / 64), bits_(kRows * words_) {}
    void put(int64_t x, int64_t level) { word(x, level) |= uint64_t(1) << (x & 63); }
    void drop(int64_t x, int64_t level) { word(x, level) &= ~(uint64_t(1) << (x & 63)); }
    void clear() { std::fill(bits_.begin(), bits_.end(), 0); }
    const uint64_t* row(int64_t level) const { return bits_.data() + (level % kRows) * words_; }

private:
    static constexpr int64_t kRows = 64;
    uint64_t& word(int64_t x, int64_t level) { return bits_[(level % kRows) * words_ + (x >> 6)]; }
    int64_t words_;
    std::vector<uint64_t> bits_;
};

}  // namespace modcut
