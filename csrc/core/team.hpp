// Who runs an algorithm. Core code is a template over a Team; every rank runs the same code, with an equal number of
// sync() on all paths. Results must not depend on size(): a rank writes only what its range owns, and reductions are
// done in index order by rank 0. BlockTeam (one CUDA block) lives in csrc/cuda/block_team.cuh.
#pragma once
#include <algorithm>
#include <barrier>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace modcut {

struct SerialTeam {
    int rank() const { return 0; }
    int size() const { return 1; }
    void sync() {}
};

class ThreadTeam {
public:
    ThreadTeam(int rank, int size, std::barrier<>* barrier) : rank_(rank), size_(size), barrier_(barrier) {}
    int rank() const { return rank_; }
    int size() const { return size_; }
    void sync() {
#if !defined(MODCUT_PLANT_NO_BARRIER)
        barrier_->arrive_and_wait();
#endif
    }

private:
    int rank_, size_;
    std::barrier<>* barrier_;
};

struct Range {
    int64_t begin, end;
};

// The share of [0, n) that a rank owns, in whole multiples of `grain` (cache lines).
template <class Team>
Range share(const Team& team, int64_t n, int64_t grain = 8) {
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
    std::vector<std::exception_ptr> errors(threads);
    auto worker = [&](int rank) {
        ThreadTeam team(rank, threads, &barrier);
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
