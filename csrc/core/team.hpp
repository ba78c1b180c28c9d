// Who runs an algorithm. Core code is a template over a Team; every rank runs the same code, with an equal number of
// sync() and any() on all paths. Results must not depend on size(): a rank writes only what its range owns, and
// reductions are done in index order. BlockTeam (one CUDA block) lives in csrc/cuda/block_team.cuh.
#pragma once
#include <algorithm>
#include <barrier>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

// What a CUDA block runs too.
#if defined(__CUDACC__)
#define MODCUT_FN __host__ __device__
#define MODCUT_UNROLL _Pragma("unroll")
#else
#define MODCUT_FN
#define MODCUT_UNROLL
#endif

namespace modcut {

// kTile: how many neighbouring vertices a rank works on side by side. One cache line of int32 on a CPU, where the
// compiler makes vectors of them; 1 on a GPU, whose threads are the vector.
struct SerialTeam {
    static constexpr int kTile = 16;
    int rank() const { return 0; }
    int size() const { return 1; }
    void sync() {}
    bool any(bool x) { return x; }  // whether x is true on some rank; a sync()
};

class ThreadTeam {
public:
    static constexpr int kTile = SerialTeam::kTile;
    ThreadTeam(int rank, int size, std::barrier<>* barrier, uint8_t* votes)
        : rank_(rank), size_(size), barrier_(barrier), votes_(votes) {}
    int rank() const { return rank_; }
    int size() const { return size_; }
    void sync() {
#if !defined(MODCUT_PLANT_NO_BARRIER)
        barrier_->arrive_and_wait();
#endif
    }
    bool any(bool x) {
        turn_ ^= 1;  // two rows of votes: a fast rank may vote again while a slow one still counts
        votes_[turn_ * size_ + rank_] = x;
        sync();
        return std::any_of(votes_ + turn_ * size_, votes_ + (turn_ + 1) * size_, [](uint8_t v) { return v != 0; });
    }

private:
    int rank_, size_, turn_ = 0;
    std::barrier<>* barrier_;
    uint8_t* votes_;  // [2 * size]
};

struct Range {
    int64_t begin, end;
};

// The share of [0, n) that a rank owns, in whole multiples of `grain` (cache lines).
template <class Team>
MODCUT_FN Range share(const Team& team, int64_t n, int64_t grain = 8) {
    int64_t units = (n + grain - 1) / grain;
    int64_t a = units * team.rank() / team.size() * grain, b = units * (team.rank() + 1) / team.size() * grain;
    return {std::min(a, n), std::min(b, n)};
}

// Runs body(team) on `threads` ranks; rank 0 is the caller. An exception of any rank is rethrown (the lowest rank's);
// bodies that sync() must not throw between syncs.
template <class Body>
void run_team(int threads, Body&& body) {
    if (threads <= 1) {
        SerialTeam team;
        body(team);
        return;
    }
    std::barrier<> barrier(threads);
    std::vector<uint8_t> votes(2 * size_t(threads));
    std::vector<std::exception_ptr> errors(threads);
    auto worker = [&](int rank) {
        ThreadTeam team(rank, threads, &barrier, votes.data());
        try {
            body(team);
        } catch (...) {
            errors[rank] = std::current_exception();
        }
    };
    std::vector<std::thread> pool;
    for (int r = 1; r < threads; ++r) pool.emplace_back(worker, r);
    worker(0);
    for (auto& t : pool) t.join();
    for (auto& e : errors)
        if (e) std::rethrow_exception(e);
}

}  // namespace modcut
